// Runs a body once per instruction set level this machine has, and puts the level back.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "octavo/isa.hpp"

namespace octavo::testing {

template <class Body>
void at_every_level(Body&& body) {
  const std::string before = to_string(active_isa());
  for (const char* level : {"baseline", "avx2", "avx512", "amx"}) {
    if (!force_isa(level)) continue;
    SCOPED_TRACE(std::string("level ") + level);
    body();
  }
  ASSERT_TRUE(force_isa(before));
}

}  // namespace octavo::testing
