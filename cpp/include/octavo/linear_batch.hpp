// Several linear layers in one launch.
#pragma once

#include "octavo/linear.hpp"

namespace octavo {

// `count` layers of one shape, class and epilogue without residual and saved, the first as LinearArgs say. Each further
// one has x and y so many elements behind the one before; weights, their scales (of rows), bias and the norm's vectors
// lie side by side.
struct LinearBatch {
  std::int64_t count = 1;
  std::int64_t x = 0, y = 0;
};

using LinearBatchLauncher = Status (*)(const LinearArgs&, const LinearBatch&);

}  // namespace octavo
