// Two rows woven into the pairs that a dot instruction takes: element j of both rows is one 32-bit group.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/avx512/linear_tile.hpp"

namespace octavo::avx512_kernels {
namespace {

// Sixteen BF16 of two rows -> sixteen pairs.
[[gnu::always_inline]] inline __m512i weave(__m512i both) {
  alignas(64) static constexpr std::uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                           21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                           11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), both);
}

// A source reads sixteen elements of two rows as BF16, the first row's in the lower half; masked lanes are zero.
struct Bf16Pair {
  static constexpr std::int64_t kBytes = 2;
  [[gnu::always_inline]] static inline __m512i load(const char* row0, const char* row1, std::int64_t i,
                                                    __mmask16 mask) {
    const __m256i low = _mm256_maskz_loadu_epi16(mask, row0 + i * 2);
    const __m256i high = row1 == nullptr ? _mm256_setzero_si256() : _mm256_maskz_loadu_epi16(mask, row1 + i * 2);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
};

struct F32Pair {
  static constexpr std::int64_t kBytes = 4;
  [[gnu::always_inline]] static inline __m512i load(const char* row0, const char* row1, std::int64_t i,
                                                    __mmask16 mask) {
    const __m512 low = _mm512_maskz_loadu_ps(mask, row0 + i * 4);
    const __m512 high = row1 == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, row1 + i * 4);
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  }
};

// One group of a panel: the 64 columns from `column` on of `columns`, 256 bytes.
template <class Source>
[[gnu::always_inline]] inline void weave_panel(const Source& source, const char* row0, const char* row1,
                                               std::int64_t column, std::int64_t columns, char* out) {
  if (column + kPanel <= columns) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v)
      _mm512_storeu_si512(out + v * 64, weave(source.load(row0, row1, column + v * 16, 0xffff)));
    return;
  }
  for (int v = 0; v < 4; ++v)
    _mm512_storeu_si512(out + v * 64,
                        weave(source.load(row0, row1, column + v * 16, first_lanes(columns - column - v * 16))));
}

}  // namespace
}  // namespace octavo::avx512_kernels
