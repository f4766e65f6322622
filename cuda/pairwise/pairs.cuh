// Which pairs of rows an output or a packed operand holds, and where: the strict triangle in row-major order.
#pragma once

#include <cstdint>

#include "octavo/pairwise.hpp"

namespace octavo::cuda {

__device__ inline bool keeps(Pairs pairs, int i, int j) {
  return pairs == Pairs::all || (pairs == Pairs::lower ? j < i : j > i);
}

// Element (i, j) of a packed [n, n] lies at row_start + j, if it is kept.
__device__ inline std::int64_t row_start(Pairs pairs, std::int64_t i, std::int64_t n) {
  return pairs == Pairs::lower ? i * (i - 1) / 2 : i * n - i * (i + 1) / 2 - (i + 1);
}

}  // namespace octavo::cuda
