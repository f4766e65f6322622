// FP32 onto the grid of an eight-bit float, kept as FP32 bits: exact in BF16.
#pragma once

#include <immintrin.h>

#include "octavo/float8.hpp"

namespace octavo::avx512_kernels {
namespace {

struct E4m3Grid {
  static constexpr int kDropped = 20, kSteps = 9;  // mantissa bits dropped; subnormals are multiples of 2^-kSteps
  static constexpr float kMinNormal = 0x1p-6f, kMax = kE4M3Max;
};
struct E5m2Grid {
  static constexpr int kDropped = 21, kSteps = 16;
  static constexpr float kMinNormal = 0x1p-14f, kMax = kE5M2Max;
};

// FP32 bits of v rounded as encode_e4m3 and encode_e5m2 round. `finite`: no element of the row is infinite or NaN, and
// none is beyond the grid.
template <class Grid, bool finite>
[[gnu::always_inline]] inline __m512i round_to_grid(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, Grid::kDropped), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32((1 << (Grid::kDropped - 1)) - 1));
  __m512i rounded = _mm512_and_si512(up, _mm512_set1_epi32(~((1 << Grid::kDropped) - 1)));
  const __m512 magnitude = _mm512_abs_ps(v);
  const __mmask16 subnormal = _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(Grid::kMinNormal), _CMP_LT_OQ);
  if constexpr (Grid::kSteps < 16) {  // vrndscale counts up to 15 binary places
    rounded =
        _mm512_castps_si512(_mm512_mask_roundscale_ps(_mm512_castsi512_ps(rounded), subnormal, v, Grid::kSteps << 4));
  } else {
    const __m512 scaled = _mm512_roundscale_ps(_mm512_mul_ps(v, _mm512_set1_ps(0x1p16f)), 0);
    rounded = _mm512_castps_si512(
        _mm512_mask_mul_ps(_mm512_castsi512_ps(rounded), subnormal, scaled, _mm512_set1_ps(0x1p-16f)));
  }
  if constexpr (!finite) {
    const __m512i sign = _mm512_and_si512(bits, _mm512_set1_epi32(INT32_MIN));
    const __mmask16 large = _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(Grid::kMax), _CMP_GT_OQ);
    const __m512i top = _mm512_castps_si512(_mm512_set1_ps(Grid::kMax));
    rounded = _mm512_mask_or_epi32(rounded, large, sign, top);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
  }
  return rounded;
}

}  // namespace
}  // namespace octavo::avx512_kernels
