// The product of strips and panels in registers: grad in strips of 6 columns, of which a group is the 24 bytes that six
// broadcasts read.
#pragma once

#include "cpu/avx512/linear_grad_weight_class.hpp"

namespace octavo::avx512_kernels {
namespace {

constexpr std::int64_t kStripRows = 6;
constexpr std::int64_t kStripBytes = kStripRows * 4;

// Rows that do not exist are zero in the strip; they are computed and neither read nor stored.
template <int V>
[[gnu::noinline]] void multiply_outer(const OuterTile& t) {
  __m512 sums[kStripRows][V];
#pragma GCC unroll 8
  for (int r = 0; r < kStripRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      sums[r][v] = _mm512_setzero_ps();
      if (!t.first && r < t.rows)
        sums[r][v] = _mm512_maskz_loadu_ps(first_lanes(t.columns - v * 16), t.c + r * t.c_stride + v * 16);
    }
  for (std::int64_t r = 0; r < t.rows; ++r)
    for (int v = 0; v < V; ++v) _mm_prefetch(reinterpret_cast<const char*>(t.c + r * t.c_stride + v * 16), _MM_HINT_T0);
  const char *a = t.strip, *panel = t.panel;
  for (std::int64_t g = 0; g < t.groups; ++g, a += kStripBytes, panel += kGroupBytes) {
    __m512i w[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) w[v] = _mm512_loadu_si512(panel + v * 64);
#pragma GCC unroll 8
    for (int r = 0; r < kStripRows; ++r) {
      const __m512i x = _mm512_set1_epi32(*reinterpret_cast<const UnalignedGroup*>(a + r * 4));
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) Bf16Dot::add(sums[r][v], x, w[v]);
    }
  }
  const bool scaled = t.last && t.row_scale != nullptr;
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const __mmask16 mask = first_lanes(t.columns - v * 16);
    const __m512 column = scaled ? _mm512_maskz_loadu_ps(mask, t.column_scale + v * 16) : _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int r = 0; r < kStripRows; ++r) {
      if (r >= t.rows) break;
      __m512 sum = sums[r][v];
      if (scaled) sum = _mm512_mul_ps(_mm512_mul_ps(sum, _mm512_set1_ps(t.row_scale[r])), column);
      _mm512_mask_storeu_ps(t.c + r * t.c_stride + v * 16, mask, sum);
    }
  }
}

constexpr std::int64_t kStripsAtOnce = 8;  // three vectors of pairs

// One group of eight strips, `stride` bytes apart: the 48 columns from `column` on of `columns`.
template <class Source>
[[gnu::always_inline]] inline void weave_strips(const Source& source, const char* row0, const char* row1,
                                                std::int64_t column, std::int64_t columns, char* out,
                                                std::int64_t stride) {
  __m512i pairs[3];
#pragma GCC unroll 3
  for (int v = 0; v < 3; ++v)
    pairs[v] = weave(source.load(row0, row1, column + v * 16, first_lanes(columns - column - v * 16)));
  const std::int64_t strips =
      columns - column >= kStripRows * kStripsAtOnce ? kStripsAtOnce : (columns - column + kStripRows - 1) / kStripRows;
  const auto put = [&](int s, __m512i six) {
    if (s < strips) _mm256_mask_storeu_epi32(out + s * stride, 0x3f, _mm512_castsi512_si256(six));
  };
  put(0, pairs[0]);
  put(1, _mm512_alignr_epi32(pairs[1], pairs[0], 6));
  put(2, _mm512_alignr_epi32(pairs[1], pairs[0], 12));
  put(3, _mm512_alignr_epi32(pairs[2], pairs[1], 2));
  put(4, _mm512_alignr_epi32(pairs[2], pairs[1], 8));
  put(5, _mm512_alignr_epi32(pairs[2], pairs[1], 14));
  put(6, _mm512_alignr_epi32(pairs[2], pairs[2], 4));
  put(7, _mm512_alignr_epi32(pairs[2], pairs[2], 10));
}

struct RegisterStrips {
  static constexpr std::int64_t kStrip = kStripRows, kGroupUnit = 1;

  // An odd number of lines: strips written side by side fall into different cache sets.
  static std::int64_t stride(std::int64_t groups) { return round_up(groups * kStripBytes, 128) + 64; }

  template <class Source>
  static void pack(const Source& source, const RowPairs& grad, std::int64_t from, std::int64_t to, char* strips,
                   std::int64_t groups) {
    const std::int64_t n = grad.of.cols;
    for (std::int64_t column = 0; column < n; column += kStripRows * kStripsAtOnce)
      for (std::int64_t g = from; g < to; ++g)
        weave_strips(source, grad.first(g), grad.second(g), column, n,
                     strips + column / kStripRows * stride(groups) + g * kStripBytes, stride(groups));
  }

  static void multiply(const OuterTile& t) {
    if (t.columns > 32) {
      multiply_outer<4>(t);
    } else if (t.columns > 16) {
      multiply_outer<2>(t);
    } else {
      multiply_outer<1>(t);
    }
  }
};

}  // namespace
}  // namespace octavo::avx512_kernels
