// Rows of x rounded for the dot instructions.
#pragma once

#include <bit>

#include "cpu/avx512/linear_tile.hpp"
#include "octavo/quantize.hpp"

namespace octavo::avx512_kernels {
namespace {

struct F32Row {
  const float* x;
  explicit F32Row(const char* row) : x(reinterpret_cast<const float*>(row)) {}
  __m512 load(std::int64_t i, __mmask16 mask) const { return _mm512_maskz_loadu_ps(mask, x + i); }
  // Magnitude bits; FP32's are compared as they are, so are BF16's shifted up.
  __m512i magnitude(std::int64_t i, __mmask16 mask) const {
    return _mm512_and_si512(_mm512_castps_si512(load(i, mask)), _mm512_set1_epi32(0x7fffffff));
  }
};

struct Bf16Row {
  const std::uint16_t* x;
  explicit Bf16Row(const char* row) : x(reinterpret_cast<const std::uint16_t*>(row)) {}
  __m512 load(std::int64_t i, __mmask16 mask) const {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x + i)), 16));
  }
  __m512i magnitude(std::int64_t i, __mmask16 mask) const {
    return _mm512_and_si512(_mm512_castps_si512(load(i, mask)), _mm512_set1_epi32(0x7fffffff));
  }
};

constexpr int kInfinity = 0x7f800000;

struct Magnitude {
  float largest_finite;
  bool finite, nan;  // every element is finite; some element is NaN
};

// BF16 rows of finite numbers: magnitudes are compared 32 at a time, as integers. False when there are others.
inline bool finite_magnitude(const Bf16Row& row, std::int64_t k, float& largest) {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  __m512i all0 = _mm512_setzero_si512(), all1 = all0;
  const auto step = [&](__m512i& all, std::int64_t i, __mmask32 mask) {
    all = _mm512_max_epu16(all, _mm512_and_si512(_mm512_maskz_loadu_epi16(mask, row.x + i), magnitude));
  };
  std::int64_t i = 0;
  for (; i + 64 <= k; i += 64) {
    step(all0, i, ~__mmask32{0});
    step(all1, i + 32, ~__mmask32{0});
  }
  for (; i < k; i += 32) step(all0, i, k - i >= 32 ? ~__mmask32{0} : (__mmask32{1} << (k - i)) - 1);
  const __m512i all = _mm512_max_epu16(all0, all1);
  const __m512i even = _mm512_slli_epi32(all, 16), odd = _mm512_and_si512(all, _mm512_set1_epi32(0x7fff0000));
  const int bits = _mm512_reduce_max_epi32(_mm512_max_epi32(even, odd));
  largest = std::bit_cast<float>(bits);
  return bits < kInfinity;
}
template <class Row>
bool finite_magnitude(const Row& row, std::int64_t k, float& largest) {
  __m512i all0 = _mm512_setzero_si512(), all1 = all0;
  std::int64_t i = 0;
  for (; i + 32 <= k; i += 32) {
    all0 = _mm512_max_epi32(all0, row.magnitude(i, 0xffff));
    all1 = _mm512_max_epi32(all1, row.magnitude(i + 16, 0xffff));
  }
  for (; i < k; i += 16) all0 = _mm512_max_epi32(all0, row.magnitude(i, first_lanes(k - i)));
  const int bits = _mm512_reduce_max_epi32(_mm512_max_epi32(all0, all1));
  largest = std::bit_cast<float>(bits);
  return bits < kInfinity;
}

template <class Row>
Magnitude magnitude_of(const Row& row, std::int64_t k) {
  float largest;
  if (finite_magnitude(row, k, largest)) return {largest, true, false};
  __m512i all = _mm512_setzero_si512(), finite = all;  // rare: look again, past infinities and NaN
  for (std::int64_t i = 0; i < k; i += 16) {
    const __m512i bits = row.magnitude(i, first_lanes(k - i));
    all = _mm512_max_epi32(all, bits);
    finite = _mm512_mask_max_epi32(finite, _mm512_cmplt_epi32_mask(bits, _mm512_set1_epi32(kInfinity)), finite, bits);
  }
  return {std::bit_cast<float>(_mm512_reduce_max_epi32(finite)), false, _mm512_reduce_max_epi32(all) > kInfinity};
}

}  // namespace
}  // namespace octavo::avx512_kernels
