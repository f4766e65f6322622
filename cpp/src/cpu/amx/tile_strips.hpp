// The product of strips and panels on AMX tiles: grad in strips of 32 columns, which are transposed so that each is a
// row of pairs.
#pragma once

#include "cpu/amx/tile_product.hpp"
#include "cpu/avx512/linear_grad_weight_class.hpp"
#include "cpu/avx512/transpose.hpp"

namespace octavo::amx_kernels {
namespace {

using avx512_kernels::OuterTile;
using avx512_kernels::RowPairs;

struct TileStrips {
  static constexpr std::int64_t kStrip = 2 * kTileRows, kGroupUnit = kStepGroups;

  // Bytes of a column's pairs; an odd number of lines, so that columns fall into different cache sets.
  static std::int64_t row_stride(std::int64_t groups) { return round_up(groups * 4, 128) + 64; }
  static std::int64_t stride(std::int64_t groups) { return kStrip * row_stride(groups); }

  template <class Source>
  static void pack(const Source& source, const RowPairs& grad, std::int64_t from, std::int64_t to, char* strips,
                   std::int64_t groups) {
    const std::int64_t n = grad.of.cols, row_bytes = row_stride(groups);
    for (std::int64_t column = 0; column < n; column += kTileRows) {
      char* out = strips + column / kStrip * stride(groups) + column % kStrip * row_bytes;
      for (std::int64_t g = from; g < to; g += kStepGroups) {
        __m512i pairs[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i)
          pairs[i] = grad.exists(g + i) ? avx512_kernels::weave(source.load(grad.first(g + i), grad.second(g + i),
                                                                            column, first_lanes(n - column)))
                                        : _mm512_setzero_si512();
        avx512_kernels::transpose(pairs);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * row_bytes + g * 4, pairs[i]);
      }
    }
  }

  static void multiply(const OuterTile& t) {
    const TileRelease release;
    const std::int64_t upper = t.rows < kTileRows ? t.rows : kTileRows;
    configure(TileConfig(upper, t.rows - upper));
    for (std::int64_t column = 0; column < t.columns; column += 32) {
      alignas(64) float sums[kStrip * 32];
      Tile part{};
      part.a = t.strip;
      part.a_stride = row_stride(t.groups);
      part.weights = t.panel + column * 4;
      part.groups = t.groups;
      part.c = sums;
      part.c_stride = 32;
      part.first = true;
      const bool wide = t.columns - column > 16;
      if (t.rows > kTileRows) {
        wide ? multiply_tiles<Bf16Tiles, true, 2>(part, 0, nullptr)
             : multiply_tiles<Bf16Tiles, true, 1>(part, 0, nullptr);
      } else {
        wide ? multiply_tiles<Bf16Tiles, false, 2>(part, 0, nullptr)
             : multiply_tiles<Bf16Tiles, false, 1>(part, 0, nullptr);
      }
      add_sums(t, sums, column);
    }
  }

 private:
  // A pass's sums of 32 columns onto those of earlier passes; times the scales when it is the last.
  [[gnu::noinline]] static void add_sums(const OuterTile& t, const float* sums, std::int64_t column) {
    const bool scaled = t.last && t.row_scale != nullptr;
    for (std::int64_t at = column; at < column + 32 && at < t.columns; at += 16) {
      const __mmask16 mask = first_lanes(t.columns - at);
      const __m512 scale = scaled ? _mm512_maskz_loadu_ps(mask, t.column_scale + at) : _mm512_setzero_ps();
      for (std::int64_t r = 0; r < t.rows; ++r) {
        float* c = t.c + r * t.c_stride + at;
        __m512 sum = _mm512_load_ps(sums + r * 32 + at - column);
        if (!t.first) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, c));
        if (scaled) sum = _mm512_mul_ps(_mm512_mul_ps(sum, _mm512_set1_ps(t.row_scale[r])), scale);
        _mm512_mask_storeu_ps(c, mask, sum);
      }
    }
  }
};

}  // namespace
}  // namespace octavo::amx_kernels
