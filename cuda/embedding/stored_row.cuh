// A stored row read into FP32 and written back by a warp, with the scales and the rounding of the CPU's backward.
// Files that include this are compiled with -fmad=false.
#pragma once

#include <limits>

#include "cpu/bag_random.hpp"
#include "cpu/bag_update.hpp"
#include "device/row_groups.cuh"
#include "embedding/row_formats.cuh"
#include "octavo/float8.hpp"
#include "quantize/codes.cuh"

namespace octavo::cuda {
namespace {  // of the CPU's codecs too

__device__ std::uint8_t* stored_row(const DeviceTable& t, std::int64_t row) { return t.rows + row * t.row_bytes; }

// Column c.
__device__ float stored_value(DType dtype, const std::uint8_t* row, int c, RowAffine affine) {
  switch (dtype) {
    case DType::f32: return reinterpret_cast<const float*>(row)[c];
    case DType::bf16: return decode_bf16(reinterpret_cast<const std::uint16_t*>(row)[c]);
    case DType::f16: return decode_f16(reinterpret_cast<const std::uint16_t*>(row)[c]);
    case DType::e4m3: return decode_e4m3(row[c]) * affine.scale;
    case DType::u4: return static_cast<float>(row[c / 2] >> c % 2 * 4 & 15) * affine.scale + affine.bias;
    default: return static_cast<float>(row[c]) * affine.scale + affine.bias;
  }
}

// x [dim] of a row, in shared memory of the warp.
__device__ void decode_row(const DeviceTable& t, std::int64_t row, float* x) {
  const std::uint8_t* stored = stored_row(t, row);
  const RowAffine affine = affine_of(t, row);
  for (int c = static_cast<int>(threadIdx.x) % 32; c < t.dim; c += 32) x[c] = stored_value(t.dtype, stored, c, affine);
}

struct NewRow {
  const float* x;  // [dim]
  bool stochastic;
  RandomRow random;

  __device__ std::uint32_t bits(int c) const { return random_bits(random, static_cast<std::uint32_t>(c)); }
};

__device__ void encode_e4m3_row(const DeviceTable& t, std::int64_t row, const NewRow& r) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Magnitude m;
  for (int c = lane; c < t.dim; c += 32) m.add(r.x[c]);
  const RowScale s = row_scale(__uint_as_float(max_group<32>(m.largest)), DType::e4m3, false);
  if (lane == 0) t.scale[row * t.scale_stride] = s.scale;
  std::uint8_t* codes = stored_row(t, row);
  for (int c = lane; c < t.dim; c += 32) {
    const float y = r.x[c] * s.multiplier;
    codes[c] = r.stochastic ? encode_e4m3_stochastic(y, r.bits(c)) : encode_e4m3(y);
  }
}

// Codes from 0 to `largest`: a byte each, or (15) two a byte.
template <std::uint32_t largest>
__device__ void encode_affine_row(const DeviceTable& t, std::int64_t row, const NewRow& r) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity(), kLargest = static_cast<float>(largest);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float low = kInfinity, high = -kInfinity;
  unsigned nan = 0;
  for (int c = lane; c < t.dim; c += 32) {
    const float x = r.x[c];
    nan |= x != x;
    if (!(fabsf(x) <= std::numeric_limits<float>::max())) continue;
    low = x < low ? x : low;
    high = x > high ? x : high;
  }
  low = combine_group<32>(low, [](float a, float b) { return a < b ? a : b; });
  high = combine_group<32>(high, [](float a, float b) { return a > b ? a : b; });
  nan = max_group<32>(nan);
  const AffineScale affine = affine_scale(low, high, kLargest);
  if (lane == 0) {
    t.scale[row * t.scale_stride] = nan != 0 ? std::numeric_limits<float>::quiet_NaN() : affine.scale;
    t.scale[row * t.scale_stride + 1] = affine.bias;
  }
  const auto code = [&](int c) {
    const float x = r.x[c];
    const float clamped = x > low ? x < high ? x : high : low;  // infinities saturate
    const float y = (clamped - affine.bias) * affine.multiplier;
    const float inside = y > 0 ? y < kLargest ? y : kLargest : 0.0f;  // nothing finite: NaN
    return r.stochastic ? encode_unsigned_stochastic(inside, largest, r.bits(c))
                        : static_cast<std::uint8_t>(rintf(inside));
  };
  std::uint8_t* codes = stored_row(t, row);
  if constexpr (largest == 255) {
    for (int c = lane; c < t.dim; c += 32) codes[c] = code(c);
  } else {
    for (int c = 2 * lane; c < t.dim; c += 64)
      codes[c / 2] = static_cast<std::uint8_t>(code(c) | (c + 1 < t.dim ? code(c + 1) << 4 : 0));
  }
}

__device__ void encode_row(const DeviceTable& t, std::int64_t row, const NewRow& r) {
  std::uint8_t* stored = stored_row(t, row);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  switch (t.dtype) {
    case DType::f32:
      for (int c = lane; c < t.dim; c += 32) reinterpret_cast<float*>(stored)[c] = r.x[c];
      return;
    case DType::bf16:
      for (int c = lane; c < t.dim; c += 32)
        reinterpret_cast<std::uint16_t*>(stored)[c] =
            r.stochastic ? encode_bf16_stochastic(r.x[c], r.bits(c)) : encode_bf16(r.x[c]);
      return;
    case DType::f16:
      for (int c = lane; c < t.dim; c += 32)
        reinterpret_cast<std::uint16_t*>(stored)[c] =
            r.stochastic ? encode_f16_stochastic(r.x[c], r.bits(c)) : encode_f16(r.x[c]);
      return;
    case DType::e4m3: return encode_e4m3_row(t, row, r);
    case DType::u4: return encode_affine_row<15>(t, row, r);
    default: return encode_affine_row<255>(t, row, r);
  }
}

}  // namespace
}  // namespace octavo::cuda
