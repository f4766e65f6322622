// BF16 to E4M3 or E5M2 by table: a BF16 has seven mantissa bits, so what x * multiplier rounds to is, up to the
// exponent, one of 128 bytes, and two registers hold them all. Needs VBMI.
//
// For a normal result: code(x) = table[mantissa] + exponent * 2^mantissa_bits (mod 256), and the low byte of
// |x| >> (7 - mantissa_bits) is exponent * 2^mantissa_bits + the mantissa's upper bits; the table takes these off
// again.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstdint>

#include "cpu/avx512/quantize_encode.hpp"
#include "cpu/avx512/quantize_input.hpp"

namespace octavo::avx512_kernels {
namespace {

template <class In, class Format>
struct Bf16Table {
  static constexpr bool exists = false;
};

#if defined(__AVX512VBMI__)
template <DType dtype, int mantissa, int exponent_bias>
class Bf16Table<Bf16, Float8<dtype, mantissa, exponent_bias>> {
  using Format = Float8<dtype, mantissa, exponent_bias>;
  static constexpr int drop = 7 - mantissa;

 public:
  static constexpr bool exists = true;

  explicit Bf16Table(float multiplier) : multiplier_(multiplier) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(multiplier);
    const float significand = std::bit_cast<float>((bits & 0x7fffffu) | 0x3f800000u);
    const int exponent = static_cast<int>(bits >> 23) - 254;
    const __m512i bias = _mm512_set1_epi8(static_cast<char>(exponent << mantissa));
    low_ = part(0, significand, bias);
    high_ = part(64, significand, bias);
    // From here on up every product is normal; some that are lie below. BF16 subnormals have no implicit one.
    const std::uint32_t least =
        (std::bit_cast<std::uint32_t>(std::bit_cast<float>(Format::min_normal_bits) / multiplier) >> 16) + 2;
    least_doubled_ = _mm512_set1_epi16(static_cast<short>(2 * (least < 0x80 ? 0x80 : least)));
  }

  [[gnu::always_inline]] __m512i operator()(const std::uint16_t* x, __mmask64 lanes) const {
    const __m512i a = _mm512_maskz_loadu_epi16(static_cast<__mmask32>(lanes), x);
    const __m512i b = _mm512_maskz_loadu_epi16(static_cast<__mmask32>(lanes >> 32), x + 32);
    const __m512i a2 = _mm512_add_epi16(a, a), b2 = _mm512_add_epi16(b, b);  // without signs
    const __mmask32 small_a = _mm512_cmplt_epu16_mask(a2, least_doubled_);
    const __mmask32 small_b = _mm512_cmplt_epu16_mask(b2, least_doubled_);
    // Bytes 2i of both vectors and bytes 2i + 1.
    const __m512i even =
        _mm512_set_epi8(126, 124, 122, 120, 118, 116, 114, 112, 110, 108, 106, 104, 102, 100, 98, 96, 94, 92, 90, 88,
                        86, 84, 82, 80, 78, 76, 74, 72, 70, 68, 66, 64, 62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40,
                        38, 36, 34, 32, 30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi8(1));
    const __m512i low7 = _mm512_set1_epi8(0x7f);
    const __m512i mantissas = _mm512_permutex2var_epi8(a, even, b), signs = _mm512_permutex2var_epi8(a, odd, b);
    const __m512i exponents = _mm512_permutex2var_epi8(_mm512_srli_epi16(a, drop), even, _mm512_srli_epi16(b, drop));
    const __m512i codes = _mm512_add_epi8(_mm512_permutex2var_epi8(low_, mantissas, high_), exponents);
    const __m512i done = _mm512_ternarylogic_epi32(low7, codes, signs, 0xca);
    if (__builtin_expect((small_a | small_b) == 0, 1)) return done;
    const __mmask32 zero_a = _mm512_testn_epi16_mask(a2, a2), zero_b = _mm512_testn_epi16_mask(b2, b2);
    if (small_a != zero_a || small_b != zero_b) return by_arithmetic(x, lanes, multiplier_);
    const __mmask64 zeros = static_cast<__mmask64>(zero_b) << 32 | zero_a;
    return _mm512_mask_mov_epi8(done, zeros, _mm512_andnot_si512(low7, signs));
  }

 private:
  static __m512i part(int first, float significand, __m512i bias) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512 v[4];
    __m512i upper[4];
    for (int i = 0; i < 4; ++i) {
      const __m512i m = _mm512_add_epi32(lane, _mm512_set1_epi32(first + 16 * i));
      const __m512i one_and = _mm512_or_si512(_mm512_slli_epi32(m, 16), _mm512_set1_epi32(0x3f800000));
      v[i] = _mm512_mul_ps(_mm512_castsi512_ps(one_and), _mm512_set1_ps(significand));
      upper[i] = _mm512_srli_epi32(m, drop);
    }
    const __m512i codes = _mm512_add_epi8(Format::encode(v), bias);
    return _mm512_sub_epi8(codes, pack<false>(upper[0], upper[1], upper[2], upper[3]));
  }

  // Steps with subnormal results. Out of line, and without `this`, so that the table stays in registers.
  [[gnu::noinline]] static __m512i by_arithmetic(const std::uint16_t* x, __mmask64 lanes, float multiplier) {
    __m512 v[4];
    Bf16::load(x, lanes, v);
    for (__m512& part : v) part = _mm512_mul_ps(part, _mm512_set1_ps(multiplier));
    return Format::encode(v);
  }

  float multiplier_;
  __m512i low_, high_, least_doubled_;
};
#endif

}  // namespace
}  // namespace octavo::avx512_kernels
