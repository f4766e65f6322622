// The activations of a linear layer rounded as its numerics class says, as exact FP32 numbers.
#pragma once

#include "cpu/per_isa.hpp"
#include "octavo/linear.hpp"
#include "octavo/quantize.hpp"

namespace octavo {

// Scale and multiplier of a row of x [K], or of the part of one that has a scale of its own; {1, 1} for classes that do
// not scale. A NaN makes the scale of int8 NaN.
OCTAVO_DECLARE_GENERIC(ScalePair activation_scale(const void* row, std::int64_t k, DType dtype, Numerics numerics))

// `count` rows of x, columns [begin, end), rounded (codes: as they are) and interleaved: out[(column - begin) * count +
// row].
OCTAVO_DECLARE_GENERIC(void round_rows(const MatrixView& x, std::int64_t first, std::int64_t count, std::int64_t begin,
                                       std::int64_t end, const float* multiplier, Numerics numerics, float* out))

}  // namespace octavo
