// Rows rounded onto the grid of an eight-bit float with a scale each, kept as BF16, exactly; zero to a multiple of 32.
#pragma once

#include "cpu/avx512/float8_rounding.hpp"
#include "cpu/avx512/linear_activations.hpp"

namespace octavo::avx512_kernels {
namespace {

template <class Grid, bool finite, class Row>
void round_row(const Row& row, std::int64_t columns, float multiplier, char* out) {
  const __m512 m = _mm512_set1_ps(multiplier);
  const auto step = [&](std::int64_t i, __mmask16 mask) {  // at most four significant bits: BF16 is the upper half
    const __m512i bits = _mm512_srli_epi32(round_to_grid<Grid, finite>(_mm512_mul_ps(row.load(i, mask), m)), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * 2), _mm512_cvtepi32_epi16(bits));
  };
  std::int64_t i = 0;
  for (; i + 16 <= columns; i += 16) step(i, 0xffff);
  for (; i < round_up(columns, 32); i += 16) step(i, first_lanes(columns - i));
}

// row_at(r): row r, its scale into `scale`.
template <class Grid, class RowAt>
void round_rows(DType format, std::int64_t first, std::int64_t count, std::int64_t columns, char* out,
                std::int64_t stride, float* scale, RowAt&& row_at) {
  for (std::int64_t r = 0; r < count; ++r, out += stride) {
    const auto row = row_at(first + r);
    const Magnitude magnitude = magnitude_of(row, columns);
    const ScalePair pair = scale_for(magnitude.largest_finite, format, false);
    scale[r] = pair.scale;
    if (magnitude.finite) {
      round_row<Grid, true>(row, columns, pair.multiplier, out);
    } else {
      round_row<Grid, false>(row, columns, pair.multiplier, out);
    }
  }
}

}  // namespace
}  // namespace octavo::avx512_kernels
