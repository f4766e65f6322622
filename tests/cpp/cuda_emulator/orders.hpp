// Runs a body under several orders of threads and blocks, and with launches that start early: what a kernel computes
// must not depend on them.
#pragma once

#include <gtest/gtest.h>

#include "device/device.hpp"
#include "emulator.hpp"

namespace octavo::testing {

template <class Body>
void in_every_order(Body&& body) {
  for (const std::uint64_t order : {0, 1, 2}) {
    SCOPED_TRACE("order of threads " + std::to_string(order));
    cuda_emulator::order_threads(order);
    cuda::start_launches_early(order != 0);
    body();
  }
  cuda_emulator::order_threads(0);
  cuda::start_launches_early(true);
}

}  // namespace octavo::testing
