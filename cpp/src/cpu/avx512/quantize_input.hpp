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

// The largest magnitude of steps of elements, infinities and NaN included.
template <class In>
class Scan {
 public:
  [[gnu::always_inline]] void step(const typename In::Storage* x, __mmask64 lanes) {
    constexpr std::int64_t count = L::count;
    even_ = L::max(even_, L::magnitude(x, static_cast<std::uint32_t>(lanes)));
    odd_ = L::max(odd_, L::magnitude(x + count, static_cast<std::uint32_t>(lanes >> count)));
    if constexpr (kStep == 2 * count) return;
    even_ = L::max(even_, L::magnitude(x + 2 * count, static_cast<std::uint32_t>(lanes >> (2 * count % kStep))));
    odd_ = L::max(odd_, L::magnitude(x + 3 * count, static_cast<std::uint32_t>(lanes >> (3 * count % kStep))));
  }
  std::uint32_t bits() const { return L::reduce_max(L::max(even_, odd_)); }

 private:
  using L = Lanes<In>;
  __m512i even_ = _mm512_setzero_si512(), odd_ = _mm512_setzero_si512();  // named: g++ keeps arrays in memory
};

// Where another pass over memory does the scanning.
struct NoScan {
  void step(const void*, __mmask64) {}
  std::uint32_t bits() const { return 0; }
};

template <class In>
[[gnu::noinline]] std::uint32_t largest_bits(const typename In::Storage* x, std::int64_t n) {
  Scan<In> scan;
  std::int64_t i = 0;
  for (; i + kStep <= n; i += kStep) scan.step(x + i, ~0ull);
  if (i < n) scan.step(x + i, (1ull << (n - i)) - 1);
  return scan.bits();
}

// For rows with infinities or NaN.
template <class In>
[[gnu::noinline]] std::uint32_t largest_finite_bits(const typename In::Storage* x, std::int64_t n) {
  using L = Lanes<In>;
  __m512i largest = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < n; i += L::count) {
    const std::uint32_t lanes = n - i >= L::count ? ~0u : (1u << (n - i)) - 1;
    largest = L::max(largest, L::finite_or_zero(L::magnitude(x + i, lanes)));
  }
  return L::reduce_max(largest);
}

}  // namespace
}  // namespace octavo::avx512_kernels
