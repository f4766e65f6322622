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

// Whether `count` matrices like `a` and as many like `b`, so many elements apart, may share memory. Columns that lie
// side by side in the same rows share none.
bool may_overlap(const MatrixView& a, std::int64_t a_distance, const MatrixView& b, std::int64_t b_distance,
                 std::int64_t count = 1);

using LinearBatchLauncher = Status (*)(const LinearArgs&, const LinearBatch&);

}  // namespace octavo
