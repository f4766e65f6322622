// What the CUDA kernels offer each other and the table. Every pointer is device memory.
#pragma once

#include <cuda_runtime_api.h>

#include "octavo/embedding.hpp"
#include "octavo/id_map.hpp"
#include "octavo/linear.hpp"
#include "octavo/linear_backward.hpp"
#include "octavo/pairwise.hpp"
#include "octavo/quantize.hpp"

namespace octavo::cuda {

// Matrices of one shape, so many elements apart. What a kernel makes of each lies behind that of the one before, row
// after row.
struct Series {
  std::int64_t count = 1, distance = 0;
};

// cuda/quantize/quantize_row.cu: E4M3, E5M2 or INT8. Rows of codes are `ld` >= x.cols bytes apart; the rest of a row is
// set to 0. `column_factor` [x.cols]: x is multiplied by it first; null: by nothing.
Status quantize_row(const QuantizeArgs& args);
Status quantize_row_padded(const QuantizeArgs& args, std::int64_t ld, const float* column_factor = nullptr,
                           const Series& series = {});

// cuda/quantize/quantize_tensor.cu: the same with one scale for all of x.
Status quantize_tensor(const QuantizeArgs& args);

// cuda/quantize/quantize_block.cu: the same with scales of 1x128 and of 128x128, and MX blocks. Transposed, for
// block_1x128: rows of codes as above, scales [ceil(ld / 128), scale_ld], those of a 128 of columns side by side, 1
// where x has no columns.
Status quantize_block(const QuantizeArgs& args);
Status quantize_block_transposed(const QuantizeArgs& args, std::int64_t ld, std::int64_t scale_ld);

// cuda/quantize/quantize_both.cu: x [M, K] to codes by rows [M, row_ld] and codes by columns, transposed,
// [K, column_ld], zeros where row_ld > K and column_ld > M. Scales are those that quantize gives x and x^T.
struct QuantizeBoth {
  MatrixView x;                                                 // f32 or bf16, not empty
  const float* column_factor = nullptr;                         // [K]: the codes by rows are of x times this
  DType row_format = DType::e4m3, column_format = DType::e4m3;  // or e5m2
  void* row_codes = nullptr;                                    // null: not wanted
  std::int64_t row_ld = 0;
  float* row_scale = nullptr;    // [M]
  void* column_codes = nullptr;  // null: not wanted
  std::int64_t column_ld = 0;
  float* column_scale = nullptr;  // [K]
  cudaStream_t stream = nullptr;
};
Status quantize_both(const QuantizeBoth& args);

// cuda/quantize/transpose_codes.cu: bytes [n, k] to [k, ld], zeros where ld > n.
Status transpose_codes(const void* codes, std::int64_t n, std::int64_t k, void* out, std::int64_t ld,
                       cudaStream_t stream);

// cuda/quantize/operand_rows.cu. Rows of `out` are `ld` >= x.cols elements apart; the rest of a row is set to 0.
Status copy_rows(const MatrixView& x, void* out, std::int64_t ld, cudaStream_t stream, const Series& series = {});
// `scale`: of rows or of 128 x 128; null: ones, as of a series.
Status to_bf16(const MatrixView& x, const float* scale, void* out, std::int64_t ld, cudaStream_t stream,
               Scaling scaling = Scaling::row, const Series& series = {});
// [rows, blocks] to [blocks, ld]; rows > 0.
Status transpose_scales(const float* scale, std::int64_t rows, std::int64_t blocks, float* out, std::int64_t ld,
                        cudaStream_t stream);

// cuda/norm/finish_linear.cu: y = act(norm(z + bias [+ residual])) [+ residual]; z [m, n] is FP32 and overwritten. Or z
// is BF16 and what the norm sees, bias and a residual before the norm included; it is left alone, and epilogue.saved is
// not written. y is FP32, BF16, or codes (e4m3, e5m2, i8) with y_scale [m]: those that quantize gives the FP32 output.
// Of a series y is not codes and there is no residual: z's rows and the epilogue's vectors lie behind each other.
Status finish_linear(const MatrixView& z, const Epilogue& epilogue, const MatrixView& y, cudaStream_t stream,
                     float* y_scale = nullptr, const Series& series = {});

// cuda/norm/epilogue_backward.cu
Status linear_epilogue_backward(const EpilogueBackwardArgs& args);

// cuda/gemm/sum_slices.cu: out FP32 = the sum of `count` matrices `stride` elements apart, whose rows are ld apart.
Status sum_slices(const float* parts, std::int64_t count, std::int64_t stride, std::int64_t ld, const MatrixView& out,
                  cudaStream_t stream);

// cuda/embedding/bag_forward.cu, bag_backward.cu
Status bag_forward(const BagForwardArgs& args);
Status row_lookup(const RowLookupArgs& args);
Status bag_backward(const BagBackwardArgs& args);

// cuda/pairwise/pairwise_dots.cu
Status pairwise_dots_fp32(const PairwiseArgs& args);
Status pairwise_dots_bf16(const PairwiseArgs& args);

// cuda/embedding/find_rows.cu
Status find_rows(const FindRowsArgs& args);

}  // namespace octavo::cuda
