// What the row quantizers read: FP32, BF16 or FP16, 64 elements a step, and the largest magnitude of a row.
//
// Magnitudes of each type order as their bits do, infinities and NaN on top: an integer maximum of the stored bits
// finds the largest and tells whether the row is special.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstdint>

namespace octavo::avx512_kernels {
namespace {

constexpr std::int64_t kStep = 64;  // elements: codes of one cache line

struct F32 {
  using Storage = float;
  static constexpr std::uint32_t infinity = 0x7f800000u;
  static float value(std::uint32_t bits) { return std::bit_cast<float>(bits); }
  [[gnu::always_inline]] static void load(const float* x, __mmask64 lanes, __m512 (&v)[4]) {
    for (int i = 0; i < 4; ++i) v[i] = _mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes >> (16 * i)), x + 16 * i);
  }
};

// Two-byte types: 32 elements a vector.
struct Bf16 {
  using Storage = std::uint16_t;
  static constexpr std::uint32_t infinity = 0x7f80u;
  static float value(std::uint32_t bits) { return std::bit_cast<float>(bits << 16); }
  [[gnu::always_inline]] static __m512 widen(__m256i half) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  [[gnu::always_inline]] static void load(const std::uint16_t* x, __mmask64 lanes, __m512 (&v)[4]) {
    for (int i = 0; i < 4; ++i)
      v[i] = widen(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(lanes >> (16 * i)), x + 16 * i));
  }
};

struct F16 {
  using Storage = std::uint16_t;
  static constexpr std::uint32_t infinity = 0x7c00u;
  static float value(std::uint32_t bits) { return _cvtsh_ss(static_cast<unsigned short>(bits)); }
  [[gnu::always_inline]] static void load(const std::uint16_t* x, __mmask64 lanes, __m512 (&v)[4]) {
    for (int i = 0; i < 4; ++i)
      v[i] = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(lanes >> (16 * i)), x + 16 * i));
  }
};

// Lanes of one vector of stored elements.
template <class In>
struct Lanes {
  static constexpr bool wide = sizeof(typename In::Storage) == 4;
  static constexpr std::int64_t count = wide ? 16 : 32;
  [[gnu::always_inline]] static __m512i magnitude(const typename In::Storage* x, std::uint32_t lanes) {
    if constexpr (wide)
      return _mm512_and_si512(_mm512_maskz_loadu_epi32(static_cast<__mmask16>(lanes), x),
                              _mm512_set1_epi32(0x7fffffff));
    else
      return _mm512_and_si512(_mm512_maskz_loadu_epi16(lanes, x), _mm512_set1_epi16(0x7fff));
  }
  [[gnu::always_inline]] static __m512i max(__m512i a, __m512i b) {
    if constexpr (wide) return _mm512_max_epu32(a, b);
    return _mm512_max_epu16(a, b);
  }
  [[gnu::always_inline]] static __m512i finite_or_zero(__m512i bits) {
    if constexpr (wide)
      return _mm512_maskz_mov_epi32(_mm512_cmplt_epu32_mask(bits, _mm512_set1_epi32(In::infinity)), bits);
    else
      return _mm512_maskz_mov_epi16(_mm512_cmplt_epu16_mask(bits, _mm512_set1_epi16(In::infinity)), bits);
  }
  static std::uint32_t reduce_max(__m512i bits) {
    if constexpr (!wide)
      bits = _mm512_max_epu32(_mm512_and_si512(bits, _mm512_set1_epi32(0xffff)), _mm512_srli_epi32(bits, 16));
    return _mm512_reduce_max_epu32(bits);
  }
};

template <class In, class Select>
[[gnu::always_inline]] inline std::uint32_t largest_selected(const typename In::Storage* x, std::int64_t n,
                                                             Select select) {
  using L = Lanes<In>;
  __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
  std::int64_t i = 0;
  for (; i + 4 * L::count <= n; i += 4 * L::count) {
    a = L::max(a, select(L::magnitude(x + i, ~0u)));
    b = L::max(b, select(L::magnitude(x + i + L::count, ~0u)));
    c = L::max(c, select(L::magnitude(x + i + 2 * L::count, ~0u)));
    d = L::max(d, select(L::magnitude(x + i + 3 * L::count, ~0u)));
  }
  for (; i < n; i += L::count)
    a = L::max(a, select(L::magnitude(x + i, n - i >= L::count ? ~0u : (1u << (n - i)) - 1)));
  return L::reduce_max(L::max(L::max(a, b), L::max(c, d)));
}

// Bits of the largest magnitude, infinities and NaN included.
template <class In>
std::uint32_t largest_bits(const typename In::Storage* x, std::int64_t n) {
  return largest_selected<In>(x, n, [](__m512i bits) { return bits; });
}

template <class In>
std::uint32_t largest_finite_bits(const typename In::Storage* x, std::int64_t n) {
  return largest_selected<In>(x, n, [](__m512i bits) { return Lanes<In>::finite_or_zero(bits); });
}

}  // namespace
}  // namespace octavo::avx512_kernels
