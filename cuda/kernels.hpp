// What the CUDA kernels offer each other and the table. Every pointer is device memory.
#pragma once

#include <cuda_runtime_api.h>

#include "octavo/linear.hpp"
#include "octavo/quantize.hpp"

namespace octavo::cuda {

// cuda/quantize/quantize_e4m3_row.cu. Rows of codes are `ld` >= x.cols bytes apart; the rest of a row is set to 0.
Status quantize_e4m3_row(const QuantizeArgs& args);
Status quantize_e4m3_row_padded(const QuantizeArgs& args, std::int64_t ld);

// cuda/quantize/operand_rows.cu. Rows of `out` are `ld` >= x.cols elements apart; the rest of a row is set to 0.
Status copy_rows(const MatrixView& x, void* out, std::int64_t ld, cudaStream_t stream);
Status to_bf16(const MatrixView& x, const float* scale, void* out, std::int64_t ld, cudaStream_t stream);

// cuda/norm/epilogue.cu: y = act(norm(z + bias [+ residual])) [+ residual]; z [m, n] FP32, rows ld apart, is
// overwritten with what the norm sees.
Status finish_linear(float* z, std::int64_t ld, const Epilogue& epilogue, const MatrixView& y, cudaStream_t stream);

// cuda/gemm/sum_slices.cu: out FP32 = the sum of `count` matrices `stride` elements apart, whose rows are ld apart.
Status sum_slices(const float* parts, std::int64_t count, std::int64_t stride, std::int64_t ld, const MatrixView& out,
                  cudaStream_t stream);

}  // namespace octavo::cuda
