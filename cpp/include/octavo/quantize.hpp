// Scaling recipes: where a scale belongs, how it is computed, how codes follow from it.
//
//   E4M3, E5M2: scale = amax / max, code = RNE(x * (max / amax))        (max = 448, 57344)
//   INT8:       scale = amax / 127, code = RNE(x * (127 / amax)), symmetric, in [-127, 127]
//   pow2:       scale rounded up to a power of two, code = RNE(x * (1 / scale))
//
//   MX:         E4M3 and E5M2 by the OCP Microscaling rule (MX v1.0, 6.3): scale = 2^(floor(log2 amax) - emax), emax =
//   8
//               and 15, at least 2^-127; code = RNE(x / scale). The scale is rounded down: values beyond 448 or 57344
//               scales (up to 1/8 of the last binade) saturate.
//
// amax skips NaN and infinities. All-zero (or all-skipped) rows, tiles and blocks get scale 1. FP32 scales that would
// fall below FP32's normal range are 2^-126. Infinities saturate. NaN stays NaN in E4M3
// and E5M2; in INT8 its code is 0 and its scale is NaN, so that dequantizing shows it.
//
// Where scales lie for x [M, K], all contiguous, last blocks short where 32 or 128 does not divide the size:
//
//   tensor         [1]                            FP32
//   row            [M]                            FP32
//   block_1x128    [M, ceil(K / 128)]             FP32; element (m, k) has scale (m, k / 128)
//   block_128x128  [ceil(M / 128), ceil(K / 128)] FP32; element (m, k) has scale (m / 128, k / 128)
//   mx             [M, ceil(K / 32)]              E8M0 bytes, 2^(byte - 127); element (m, k) has scale (m, k / 32)
#pragma once

#include <cstdint>

#include "octavo/types.hpp"

namespace octavo {

enum class Scaling : std::uint8_t { tensor, row, block_1x128, block_128x128, mx };
constexpr std::int64_t kScaleBlock = 128, kMxBlock = 32;
constexpr std::int64_t scale_blocks(std::int64_t size) { return (size + kScaleBlock - 1) / kScaleBlock; }

// What one scale serves: rows x columns; a side of 0 means all of them.
struct ScaleTile {
  std::int64_t rows, cols;
};
constexpr ScaleTile tile_of(Scaling scaling) {
  switch (scaling) {
    case Scaling::tensor: return {0, 0};
    case Scaling::row: return {1, 0};
    case Scaling::block_1x128: return {1, kScaleBlock};
    case Scaling::block_128x128: return {kScaleBlock, kScaleBlock};
    default: return {1, kMxBlock};
  }
}

struct QuantizeArgs {
  MatrixView x;  // [M, K] f32, bf16 or f16
  DType format;  // e4m3, e5m2 or i8
  Scaling scaling;
  bool pow2_scale = false;
  void* codes = nullptr;               // [M, K] contiguous, one byte each
  float* scale = nullptr;              // laid out as above; unused for mx
  std::uint8_t* scale_e8m0 = nullptr;  // mx only
  void* stream = nullptr;              // CUDA only
};

// scale and multiplier for a largest finite magnitude `amax`: the one definition, used by every kernel.
struct ScalePair {
  float scale, multiplier;
};
ScalePair scale_for(float amax, DType format, bool pow2_scale);

// E8M0 scale of an MX block and its reciprocal.
struct MxScale {
  std::uint8_t e8m0;
  float multiplier;
};
MxScale mx_scale_for(float amax, DType format);

Status validate(const QuantizeArgs& args);

struct DequantizeArgs {
  const void* codes;  // [M, K] contiguous
  DType format;
  Scaling scaling;
  const float* scale;
  MatrixView out;                            // [M, K] f32 or bf16
  const std::uint8_t* scale_e8m0 = nullptr;  // mx only
};

Status dequantize(const DequantizeArgs& args);

}  // namespace octavo
