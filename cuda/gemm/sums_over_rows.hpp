// grad_weight's product sums over all rows of the batch and has few outputs: it is cut into slices of rows that fill
// the multiprocessors, and the slices' results are added in one fixed order.
#pragma once

#include "gemm/layers.hpp"

namespace octavo::cuda {

// out [rows, cols] FP32, the first rows and columns of g's d, of which everything but k, d and the batch is set. From
// one row of the batch to the next the operands advance by x_step and w_step elements. `m`: rows of the batch; 0 gives
// zeros.
Status sum_over_rows(Gemm g, Product product, Major major, std::int64_t m, std::int64_t x_step, std::int64_t w_step,
                     const MatrixView& out, cudaStream_t stream);

}  // namespace octavo::cuda
