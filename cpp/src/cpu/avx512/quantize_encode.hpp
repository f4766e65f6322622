// 64 scaled elements to 64 codes: one cache line of output a step, rounded to nearest even by the FP32 adder.
//
// In an anonymous namespace: every includer has its own copy. Includers are compiled with -ffp-contract=off.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "octavo/types.hpp"

namespace octavo::avx512_kernels {
namespace {

// The low byte of each of 64 dwords; with signs, its top bit comes from the dword's.
template <bool with_sign>
[[gnu::always_inline]] inline __m512i pack(__m512i t0, __m512i t1, __m512i t2, __m512i t3) {
  const __m512i low7 = _mm512_set1_epi8(0x7f);
#if defined(__AVX512VBMI__)
  // Bytes 0 of two sources in the lower half, bytes 3 in the upper.
  const __m512i bytes =
      _mm512_set_epi8(127, 123, 119, 115, 111, 107, 103, 99, 95, 91, 87, 83, 79, 75, 71, 67, 63, 59, 55, 51, 47, 43, 39,
                      35, 31, 27, 23, 19, 15, 11, 7, 3, 124, 120, 116, 112, 108, 104, 100, 96, 92, 88, 84, 80, 76, 72,
                      68, 64, 60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20, 16, 12, 8, 4, 0);
  const __m512i t01 = _mm512_permutex2var_epi8(t0, bytes, t1), t23 = _mm512_permutex2var_epi8(t2, bytes, t3);
  const __m512i codes = _mm512_shuffle_i64x2(t01, t23, 0x44);
  if constexpr (!with_sign) return codes;
  return _mm512_ternarylogic_epi32(low7, codes, _mm512_shuffle_i64x2(t01, t23, 0xee), 0xca);
#else
  const auto narrow = [&](__m512i t) {
    if constexpr (with_sign) t = _mm512_ternarylogic_epi32(low7, t, _mm512_srli_epi32(t, 24), 0xca);
    return _mm512_cvtepi32_epi8(t);
  };
  __m512i codes = _mm512_castsi128_si512(narrow(t0));
  codes = _mm512_inserti32x4(codes, narrow(t1), 1);
  codes = _mm512_inserti32x4(codes, narrow(t2), 2);
  return _mm512_inserti32x4(codes, narrow(t3), 3);
#endif
}

// E4M3 and E5M2. |v| must not exceed the format's largest value by more than rounding takes back.
//
// Adding 2^(e + shift), e the exponent of v but at least the smallest normal's, leaves v / ulp(v) rounded to nearest
// even in the sum's low bits; a code is that plus the exponent times 2^mantissa_bits, and the exponent stands in the
// sum's upper bits. `offset` makes the difference of the two biases vanish modulo 256.
template <DType dtype, int mantissa, int exponent_bias>
struct Float8 {
  static constexpr DType format = dtype;
  static constexpr int mantissa_bits = mantissa, bias = exponent_bias, shift = 23 - mantissa;
  static constexpr std::uint32_t min_normal_bits = static_cast<std::uint32_t>(128 - bias) << 23;
  static constexpr std::uint32_t offset = static_cast<std::uint32_t>(bias - 128 - shift) << mantissa & 0xff;
  static constexpr float largest = dtype == DType::e4m3 ? 448.0f : 57344.0f;

  // The code in the low byte, the sign in the top bit.
  [[gnu::always_inline]] static __m512i round(__m512 v) {
    const __m512 least = _mm512_castsi512_ps(_mm512_set1_epi32(min_normal_bits));
    const __m512i wide = _mm512_castps_si512(_mm512_range_ps(v, least, 3));  // larger magnitude, sign of v
    const __m512i power = _mm512_and_si512(wide, _mm512_set1_epi32(static_cast<int>(0xff800000u)));
    const __m512i magic = _mm512_add_epi32(power, _mm512_set1_epi32((shift << 23) + static_cast<int>(offset)));
    const __m512i sum = _mm512_castps_si512(_mm512_add_ps(v, _mm512_castsi512_ps(magic)));
    return _mm512_add_epi32(sum, _mm512_srli_epi32(sum, shift));
  }
  [[gnu::always_inline]] static __m512i encode(const __m512 (&v)[4]) {
    return pack<true>(round(v[0]), round(v[1]), round(v[2]), round(v[3]));
  }
  [[gnu::always_inline]] static __m512i mark_nan(__m512i codes, __mmask64 nan) {
    return _mm512_mask_blend_epi8(nan, codes, _mm512_or_si512(codes, _mm512_set1_epi8(0x7f)));
  }
};
using E4M3 = Float8<DType::e4m3, 3, 7>;
using E5M2 = Float8<DType::e5m2, 2, 15>;

struct Int8 {
  static constexpr DType format = DType::i8;
  static constexpr float largest = 127.0f;
  [[gnu::always_inline]] static __m512i encode(const __m512 (&v)[4]) {
    return pack<false>(_mm512_cvtps_epi32(v[0]), _mm512_cvtps_epi32(v[1]), _mm512_cvtps_epi32(v[2]),
                       _mm512_cvtps_epi32(v[3]));
  }
  [[gnu::always_inline]] static __m512i mark_nan(__m512i codes, __mmask64 nan) {
    return _mm512_maskz_mov_epi8(~nan, codes);
  }
};

}  // namespace
}  // namespace octavo::avx512_kernels
