// One FP32 row to eight-bit codes, for kernels that know its magnitude already: the rules and the bits of quantize.
#pragma once

#include "cpu/per_isa.hpp"
#include "octavo/quantize.hpp"

namespace octavo {

struct RowMagnitude {
  std::uint32_t bits;  // largest finite |x| as FP32 bits
  bool nan;            // is there one
};

// Writes n codes in `format` (e4m3 or i8) and returns the row's scale.
OCTAVO_DECLARE_GENERIC(float quantize_row(const float* row, std::int64_t n, RowMagnitude magnitude, DType format,
                                          std::uint8_t* codes))

}  // namespace octavo
