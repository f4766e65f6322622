// Eight-bit codes and their scales, by the rules of octavo/quantize.hpp. Files that include this are compiled with
// -fmad=false: x * multiplier rounds once.
#pragma once

#include <cuda_fp8.h>

#include "device/columns.cuh"
#include "octavo/types.hpp"

namespace octavo::cuda {

struct RowScale {
  float scale, multiplier;
};

__device__ inline float round_up_to_power_of_two(float scale) {
  const unsigned bits = __float_as_uint(scale);
  const unsigned exponent = bits & 0x7f800000u;
  return __uint_as_float((bits & 0x007fffffu) != 0 ? exponent + 0x00800000u : exponent);
}

// For a largest finite magnitude.
__device__ inline RowScale row_scale(float amax, DType format, bool pow2) {
  constexpr float kSmallestScale = 1.17549435e-38f;  // 2^-126
  const float largest = format == DType::e4m3 ? 448.0f : format == DType::e5m2 ? 57344.0f : 127.0f;
  if (!(amax > 0.0f)) return {1.0f, 1.0f};
  float scale = amax / largest;
  if (pow2) {
    scale = round_up_to_power_of_two(fmaxf(scale, kSmallestScale));
    return {scale, 1.0f / scale};
  }
  if (scale < kSmallestScale) return {kSmallestScale, 1.0f / kSmallestScale};
  return {scale, largest / amax};
}

// Of an MX block: 2^(e8m0 - 127), by mx_scale_for's rule.
struct MxRowScale {
  std::uint8_t e8m0;
  float multiplier;
};

__device__ inline MxRowScale mx_row_scale(float amax, DType format) {
  const unsigned bits = __float_as_uint(amax);
  if (bits == 0) return {127, 1.0f};
  // Below FP32's normal range the exponent is that of a scale that is too small to hold anyway.
  const int kept = static_cast<int>(bits >> 23) - (format == DType::e4m3 ? 8 : 15);
  const unsigned e8m0 = kept < 0 ? 0u : static_cast<unsigned>(kept);
  return {static_cast<std::uint8_t>(e8m0), __uint_as_float((254u - e8m0) << 23)};
}

// What enters a scale: bits of the largest finite magnitude, and whether there is a NaN.
struct Magnitude {
  unsigned largest = 0;
  bool nan = false;

  __device__ void add(float x) {
    const unsigned bits = __float_as_uint(x) & 0x7fffffffu;
    if (bits < 0x7f800000u) largest = bits > largest ? bits : largest;
    nan |= bits > 0x7f800000u;
  }
};

__device__ inline unsigned encode_int8(float v) {
  const float clamped = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v == v ? v : 0.0f;
  return __float_as_uint(clamped + 12582912.0f) & 0xff;  // 1.5 * 2^23: adding it rounds to nearest even
}

// Codes of eight columns, the first in the lowest byte.
__device__ inline uint2 encode_columns(const float (&v)[kColumns], float multiplier, DType format) {
  unsigned words[2] = {0, 0};
#pragma unroll
  for (int pair = 0; pair < kColumns / 2; ++pair) {
    const float2 two = {v[2 * pair] * multiplier, v[2 * pair + 1] * multiplier};
    const unsigned codes =
        format == DType::i8
            ? encode_int8(two.x) | encode_int8(two.y) << 8
            : __nv_cvt_float2_to_fp8x2(two, __NV_SATFINITE, format == DType::e4m3 ? __NV_E4M3 : __NV_E5M2);
    words[pair / 2] |= codes << pair % 2 * 16;
  }
  return {words[0], words[1]};
}

// The first `count` of them. `aligned`: p is a multiple of 8.
__device__ inline void store_codes(std::uint8_t* p, uint2 codes, int count, bool aligned) {
  if (aligned && count >= kColumns) {
    *reinterpret_cast<uint2*>(p) = codes;
    return;
  }
#pragma unroll
  for (int j = 0; j < kColumns; ++j)
    if (j < count) p[j] = static_cast<std::uint8_t>((j < 4 ? codes.x : codes.y) >> j % 4 * 8);
}

}  // namespace octavo::cuda
