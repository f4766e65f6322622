// Runs a body under several orders of threads and blocks: what a kernel computes must not depend on them.
#pragma once

#include <gtest/gtest.h>

#include "emulator.hpp"

namespace octavo::testing {

template <class Body>
void in_every_order(Body&& body) {
  for (const std::uint64_t order : {0, 1, 2}) {
    SCOPED_TRACE("order of threads " + std::to_string(order));
    cuda_emulator::order_threads(order);
    body();
  }
  cuda_emulator::order_threads(0);
}

}  // namespace octavo::testing
