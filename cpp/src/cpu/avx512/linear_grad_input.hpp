// What the kernels of grad_x = grad W share: it is the linear layer of W^T, through the same driver.
#pragma once

#include "cpu/avx512/linear_activations.hpp"
#include "cpu/avx512/linear_tile.hpp"
#include "octavo/linear_backward.hpp"

namespace octavo::avx512_kernels {
namespace {

// A row of grad times W's scales, which belong to the dimension that is summed over.
template <class Plain>
struct ScaledRow {
  Plain plain;
  const float* scale;
  __m512 load(std::int64_t i, __mmask16 mask) const {
    return _mm512_mul_ps(plain.load(i, mask), _mm512_maskz_loadu_ps(mask, scale + i));
  }
  __m512i magnitude(std::int64_t i, __mmask16 mask) const {
    return _mm512_and_si512(_mm512_castps_si512(load(i, mask)), _mm512_set1_epi32(0x7fffffff));
  }
};

// Calls with_rows(row_at), where row_at(r) is row r of grad times `scale`, for grad's type.
template <class WithRows>
void over_scaled_rows(const MatrixView& grad, const float* scale, WithRows&& with_rows) {
  if (grad.dtype == DType::bf16) {
    with_rows([&](std::int64_t r) { return ScaledRow<Bf16Row>{Bf16Row(row_of(grad, r)), scale}; });
  } else {
    with_rows([&](std::int64_t r) { return ScaledRow<F32Row>{F32Row(row_of(grad, r)), scale}; });
  }
}

template <class Class>
void run_grad_input(const GradInputArgs& args, Class& kernel) {
  if (args.grad_x.rows == 0 || args.grad_x.cols == 0) return;
  const PackedWeight unscaled(nullptr, nullptr, args.weight->k(), args.weight->n(), DType::bf16);
  LinearArgs product;
  product.x = args.grad;
  product.weight = &unscaled;
  product.y = args.grad_x;
  Linear<Class>(product, kernel).run();
}

}  // namespace
}  // namespace octavo::avx512_kernels
