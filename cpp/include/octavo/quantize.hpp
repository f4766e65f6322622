// Scaling recipes: where a scale belongs, how it is computed, how codes follow from it.
//
//   E4M3, E5M2: scale = amax / max, code = RNE(x * (max / amax))        (max = 448, 57344)
//   INT8:       scale = amax / 127, code = RNE(x * (127 / amax)), symmetric, in [-127, 127]
//   pow2:       scale rounded up to a power of two, code = RNE(x * (1 / scale))
//
// amax skips NaN and infinities. All-zero (or all-skipped) rows get scale 1. Rows whose scale would fall below
// FP32's normal range use 2^-126. Infinities saturate. NaN stays NaN in E4M3
// and E5M2; in INT8 its code is 0 and the row's scale is NaN, so that dequantizing shows it.
#pragma once

#include <cstdint>

#include "octavo/types.hpp"

namespace octavo {

enum class Scaling : std::uint8_t { tensor, row };

struct QuantizeArgs {
  MatrixView x;  // [M, K] f32, bf16 or f16
  DType format;  // e4m3, e5m2 or i8
  Scaling scaling;
  bool pow2_scale = false;
  void* codes = nullptr;   // [M, K] contiguous, one byte each
  float* scale = nullptr;  // [M] for row, [1] for tensor
  void* stream = nullptr;  // CUDA only
};

// scale and multiplier for a largest finite magnitude `amax`: the one definition, used by every kernel.
struct ScalePair {
  float scale, multiplier;
};
ScalePair scale_for(float amax, DType format, bool pow2_scale);

Status validate(const QuantizeArgs& args);

struct DequantizeArgs {
  const void* codes;  // [M, K] contiguous
  DType format;
  Scaling scaling;
  const float* scale;
  MatrixView out;  // [M, K] f32 or bf16
};

Status dequantize(const DequantizeArgs& args);

}  // namespace octavo
