// One GEMM with its epilogue, as the kernels of tiles.hpp take it. Every pointer is device memory.
#pragma once

#include "octavo/linear.hpp"

namespace octavo {

// Member by member, so that one that is added fails to compile here.
inline bool operator==(const MatrixView& a, const MatrixView& b) {
  const auto& [data, rows, cols, row_stride, dtype] = a;
  return data == b.data && rows == b.rows && cols == b.cols && row_stride == b.row_stride && dtype == b.dtype;
}

}  // namespace octavo

namespace octavo::cuda {

// d [m, n] = act(norm(x_scale x w^T w_scale + bias [+ residual])) [+ residual]
// in the order of octavo/linear.hpp, x_scale and w_scale diagonal; Product::e4m3_block: one of each per 128 of k, by
// which that part of the sum is multiplied. x [m, k] and w [n, k] are codes or BF16, ld elements from row to row
// (Major::k) or from column to column (Major::mn). What the tile cannot do is refused (tile_choice.hpp).
struct Gemm {
  int m = 0, n = 0, k = 0;
  const void *x = nullptr, *w = nullptr;
  std::int64_t ldx = 0, ldw = 0;
  // [m], [n]; nullptr: ones. Of blocks [ceil(k / 128), block_scale_ld(m)], [ceil(n / 128), ceil(k / 128)]; not nullptr.
  const float *x_scale = nullptr, *w_scale = nullptr;
  void* d = nullptr;
  std::int64_t ldd = 0;
  DType d_dtype = DType::bf16;  // or f32; e4m3 behind a norm of whole rows: codes
  float* d_scale = nullptr;     // [m], of codes
  const float* bias = nullptr;  // [n]
  MatrixView residual;          // [m, n] bf16, or f32 with direct stores or a norm
  bool residual_first = false;  // before norm and activation
  Activation activation = Activation::none;
  NormKind norm = NormKind::none;  // layer or rms (which block and swish_rms come down to)
  int norm_block = 0;              // rms: columns that share a mean square; 0: all
  const float *norm_weight = nullptr, *norm_bias = nullptr;
  float eps = 0.0f;
  // So many products, `x_batch`, `w_batch` and `d_batch` elements apart, without residual and codes. x's scales are
  // `row_batch` apart, w's and the vectors of the epilogue `column_batch`, which is n where there is a norm.
  int batch = 1;
  std::int64_t x_batch = 0, w_batch = 0, d_batch = 0, row_batch = 0, column_batch = 0;

#ifdef __cpp_impl_three_way_comparison  // the kernels are C++17
  bool operator==(const Gemm&) const = default;
#endif
};

// From one 128 of k to the next in x's scales of blocks: the memory accelerator reads rows of 16 bytes.
constexpr std::int64_t block_scale_ld(std::int64_t m) { return (m + 3) / 4 * 4; }

}  // namespace octavo::cuda
