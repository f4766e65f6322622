// grad in E5M2 with a scale per row, W's codes in E4M3: W's scales belong to the dimension that is summed over, so they
// are multiplied into grad before it is rounded. Both are exact in BF16.
#pragma once

#include "cpu/avx512/float8_rounding.hpp"
#include "cpu/avx512/linear_grad_input_class.hpp"

namespace octavo::avx512_kernels {
namespace {

template <bool finite, class Row>
void round_row(const Row& row, std::int64_t n, float multiplier, char* out) {
  const __m512 m = _mm512_set1_ps(multiplier);
  for (std::int64_t i = 0; i < round_up(n, 32); i += 16) {  // beyond N comes zero
    const __m512 v = _mm512_mul_ps(row.load(i, first_lanes(n - i)), m);
    const __m512i bits = _mm512_srli_epi32(round_to_grid<E5m2Grid, finite>(v), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * 2), _mm512_cvtepi32_epi16(bits));
  }
}

template <class Product>
struct RowClass : TransposedClass<Product, true> {
  explicit RowClass(const PackedWeight& w) : TransposedClass<Product, true>(w), column(w.scale()) {}

  RoundedRows round(const LinearArgs& args, std::int64_t first, std::int64_t count, void* buffer, float* scale) const {
    const std::int64_t stride = round_up(args.x.cols * 2, 64);
    char* out = static_cast<char*>(buffer);
    over_scaled_rows(args.x, column, [&](const auto& row_at) {
      for (std::int64_t r = 0; r < count; ++r) {
        const auto row = row_at(first + r);
        const Magnitude magnitude = magnitude_of(row, args.x.cols);
        const ScalePair pair = scale_for(magnitude.largest_finite, DType::e5m2, false);
        scale[r] = pair.scale;
        if (magnitude.finite) {
          round_row<true>(row, args.x.cols, pair.multiplier, out + r * stride);
        } else {
          round_row<false>(row, args.x.cols, pair.multiplier, out + r * stride);
        }
      }
    });
    return {out, stride};
  }

  const float* column;
};

}  // namespace
}  // namespace octavo::avx512_kernels
