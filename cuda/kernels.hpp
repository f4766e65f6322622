// What the CUDA kernels offer each other and the table. Every pointer is device memory.
#pragma once

#include <cuda_runtime_api.h>

#include "octavo/linear.hpp"
#include "octavo/quantize.hpp"

namespace octavo::cuda {

// cuda/quantize/quantize_e4m3_row.cu. Rows of codes are `ld` >= x.cols bytes apart; the rest of a row is set to 0.
Status quantize_e4m3_row(const QuantizeArgs& args);
Status quantize_e4m3_row_padded(const QuantizeArgs& args, std::int64_t ld);

// cuda/gemm/gemm_e4m3_row_sm90.cu: d [m, n] = diag(x_scale) x w^T diag(w_scale), x [m, k], w [n, k] codes, k-major.
// k a multiple of 16; n a multiple of 8 (d BF16) or 4 (d FP32); d's rows n elements apart; 16-byte aligned.
struct GemmE4m3Row {
  const void *x, *w;
  const float *x_scale, *w_scale;
  void* d;
  DType d_dtype;  // bf16 or f32
  int m, n, k;
  cudaStream_t stream;
};
Status gemm_e4m3_row_sm90(const GemmE4m3Row& problem);

// cuda/norm/epilogue.cu: y = act(norm(z + bias [+ residual])) [+ residual]; z [m, n] FP32, rows ld apart, overwritten.
Status finish_linear(float* z, std::int64_t ld, const Epilogue& epilogue, const MatrixView& y, cudaStream_t stream);

// cuda/gemm/linear_e4m3_row_sm90.cpp: the whole layer.
Status linear_e4m3_row_sm90(const LinearArgs& args);

}  // namespace octavo::cuda
