// E4M3 rows with AVX-512 F, BW, VL and DQ alone: through FP16.
#pragma once

#include "cpu/avx512/bag_formats.hpp"

namespace octavo::avx512_kernels {
namespace {

// FP16's exponent field takes E4M3's, 8 too small, so 2^8 goes into the scale. Exact for all finite codes, and immune
// to flushing of FP32 subnormals.
struct E4m3ViaF16 : Elements<std::uint8_t> {
  RowScales scales;
  explicit E4m3ViaF16(const TableView& table) : scales(table) {}
  float scale(std::int64_t row, float weight) const { return scales(row) * weight * 256.0f; }
  float bias(std::int64_t, float) const { return 0; }

  [[gnu::always_inline]] static inline __m512 decode(__m128i codes) {
    const __m256i words = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
    return _mm512_cvtph_ps(_mm256_and_si256(words, _mm256_set1_epi16(static_cast<short>(0xbfff))));
  }
  [[gnu::always_inline]] static inline __mmask32 nans(__m256i codes) {
    const __m256i magnitude = _mm256_set1_epi8(0x7f);
    return _mm256_cmpeq_epi8_mask(_mm256_and_si256(codes, magnitude), magnitude);
  }

  template <int vectors>
  [[gnu::always_inline]] inline void add(__m512* sum, const std::uint8_t* x, __m512 scale, __mmask16 tail) const {
    constexpr int pairs = vectors / 2;
    const __m512i clear = _mm512_set1_epi16(static_cast<short>(0xbfff));
    __mmask32 found = 0;
#pragma GCC unroll 4
    for (int i = 0; i < pairs; ++i) {
      const bool last = 2 * i + 2 == vectors;
      const __mmask32 mask = last ? __mmask32{0xffff} | __mmask32{tail} << 16 : ~__mmask32{0};
      const __m256i codes = last ? _mm256_maskz_loadu_epi8(mask, x + 32 * i)
                                 : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 32 * i));
      found |= nans(codes);
      const __m512i words = _mm512_and_si512(_mm512_slli_epi16(_mm512_cvtepi8_epi16(codes), 7), clear);
      const __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(words));
      const __m512 high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(words, 1));
      sum[2 * i] = _mm512_fmadd_ps(low, scale, sum[2 * i]);
      sum[2 * i + 1] = _mm512_fmadd_ps(high, scale, sum[2 * i + 1]);
    }
    if constexpr (vectors % 2 == 1) {
      constexpr int i = vectors - 1;
      const __m128i codes = _mm_maskz_loadu_epi8(tail, x + 16 * i);
      found |= nans(_mm256_zextsi128_si256(codes));
      sum[i] = _mm512_fmadd_ps(decode(codes), scale, sum[i]);
    }
    if (__builtin_expect(found != 0, 0)) poison<vectors>(sum, x, tail);
  }

  // Inline although it is cold: a call would keep the sums in memory.
  template <int vectors>
  [[gnu::always_inline]] static void poison(__m512* sum, const std::uint8_t* x, __mmask16 tail) {
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) {
      const __m128i codes = _mm_maskz_loadu_epi8(i + 1 < vectors ? 0xffff : tail, x + 16 * i);
      const __mmask16 nan = static_cast<__mmask16>(nans(_mm256_zextsi128_si256(codes)));
      sum[i] = _mm512_mask_mov_ps(sum[i], nan, _mm512_set1_ps(__builtin_nanf("")));
    }
  }
};

}  // namespace
}  // namespace octavo::avx512_kernels
