// A batch of matrices of small integers, rows or columns contiguous.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "octavo/types.hpp"

namespace octavo::testing {

// Memory of exactly the elements a view may touch, so that a sanitizer sees every one beyond.
struct Operand {
  std::vector<float> values;
  BatchView view;

  Operand(std::int64_t batch, std::int64_t rows, std::int64_t cols, bool across, unsigned seed)
      : values(static_cast<std::size_t>(batch * rows * cols)) {
    std::mt19937 generator(seed);
    std::uniform_int_distribution<int> small(-8, 8);  // exact in BF16 and in every sum
    for (float& v : values) v = static_cast<float>(small(generator));
    view = {values.data(), rows, cols, rows * cols, across ? 1 : cols, across ? rows : 1, DType::f32};
  }
  double at(std::int64_t b, std::int64_t i, std::int64_t k) const {
    return static_cast<double>(
        values[static_cast<std::size_t>(b * view.batch_stride + i * view.row_stride + k * view.col_stride)]);
  }
};

}  // namespace octavo::testing
