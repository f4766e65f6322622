// Row formats of embedding tables as the AVX-512 bag kernels read them.
//
// A format adds weight * row to sums of 16 columns each: `scale` folds the row's scale into the weight, `bias` is what
// every column gets on top, `add` does the columns. Loads stay inside the row: a wider one would touch the next cache
// line, which nobody prefetched. `tail` masks the last vector.
#pragma once

#include <immintrin.h>

#include "octavo/embedding.hpp"

namespace octavo::avx512_kernels {
namespace {

struct F32 {
  using Storage = float;
  explicit F32(const TableView&) {}
  float scale(std::int64_t, float weight) const { return weight; }
  float bias(std::int64_t, float) const { return 0; }
  template <int vectors>
  [[gnu::always_inline]] inline void add(__m512* sum, const float* x, __m512 scale, __mmask16 tail) const {
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) {
      const __m512 v = i + 1 < vectors ? _mm512_loadu_ps(x + 16 * i) : _mm512_maskz_loadu_ps(tail, x + 16 * i);
      sum[i] = _mm512_fmadd_ps(v, scale, sum[i]);
    }
  }
};

struct Bf16 {
  using Storage = std::uint16_t;
  explicit Bf16(const TableView&) {}
  float scale(std::int64_t, float weight) const { return weight; }
  float bias(std::int64_t, float) const { return 0; }
  template <int vectors>
  [[gnu::always_inline]] inline void add(__m512* sum, const std::uint16_t* x, __m512 scale, __mmask16 tail) const {
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) {
      const __m256i bits = i + 1 < vectors ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 16 * i))
                                           : _mm256_maskz_loadu_epi16(tail, x + 16 * i);
      const __m512 v = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
      sum[i] = _mm512_fmadd_ps(v, scale, sum[i]);
    }
  }
};

struct Int8 {
  using Storage = std::uint8_t;
  const float* scale_bias;
  explicit Int8(const TableView& table) : scale_bias(table.scale) {}
  float scale(std::int64_t row, float weight) const { return scale_bias[2 * row] * weight; }
  float bias(std::int64_t row, float weight) const { return scale_bias[2 * row + 1] * weight; }
  template <int vectors>
  [[gnu::always_inline]] inline void add(__m512* sum, const std::uint8_t* x, __m512 scale, __mmask16 tail) const {
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) {
      const __m128i codes = i + 1 < vectors ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 16 * i))
                                            : _mm_maskz_loadu_epi8(tail, x + 16 * i);
      sum[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes)), scale, sum[i]);
    }
  }
};

}  // namespace
}  // namespace octavo::avx512_kernels
