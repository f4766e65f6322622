// The second half of a linear layer, on rows that are still in cache. The hand-written kernels use it too.
#pragma once

#include "cpu/per_isa.hpp"
#include "octavo/linear.hpp"

namespace octavo {

// `rows` [count, N] FP32, row_stride apart, hold x W^T + bias of the output rows from `first` on. Applies residual,
// norm and activation and writes those rows of y, and their scales where y holds codes. Rows are overwritten on the
// way; row_stride >= N rounded up to 16.
OCTAVO_DECLARE_GENERIC(void finish_rows(float* rows, std::int64_t row_stride, std::int64_t first, std::int64_t count,
                                        const Epilogue& epilogue, const MatrixView& y, float* y_scale = nullptr))

}  // namespace octavo
