// grad times W's scales in INT8 with a scale per row, W's codes in INT8: four rows of W are woven into the groups of a
// panel of W^T.
#pragma once

#include "cpu/avx512/linear_grad_input.hpp"
#include "cpu/avx512/linear_int8_class.hpp"

namespace octavo::avx512_kernels {
namespace {

// Byte c of each of four rows becomes group c: 64 groups.
[[gnu::always_inline]] inline void weave(const __m512i (&rows)[4], __m512i (&groups)[4]) {
  const __m512i low01 = _mm512_unpacklo_epi8(rows[0], rows[1]), high01 = _mm512_unpackhi_epi8(rows[0], rows[1]);
  const __m512i low23 = _mm512_unpacklo_epi8(rows[2], rows[3]), high23 = _mm512_unpackhi_epi8(rows[2], rows[3]);
  // In each quarter, groups 0-3, 4-7, 8-11 and 12-15 of its sixteen.
  const __m512i a = _mm512_unpacklo_epi16(low01, low23), b = _mm512_unpackhi_epi16(low01, low23);
  const __m512i c = _mm512_unpacklo_epi16(high01, high23), d = _mm512_unpackhi_epi16(high01, high23);
  const __m512i ab02 = _mm512_shuffle_i32x4(a, b, 0x88), ab13 = _mm512_shuffle_i32x4(a, b, 0xdd);
  const __m512i cd02 = _mm512_shuffle_i32x4(c, d, 0x88), cd13 = _mm512_shuffle_i32x4(c, d, 0xdd);
  groups[0] = _mm512_shuffle_i32x4(ab02, cd02, 0x88);
  groups[1] = _mm512_shuffle_i32x4(ab13, cd13, 0x88);
  groups[2] = _mm512_shuffle_i32x4(ab02, cd02, 0xdd);
  groups[3] = _mm512_shuffle_i32x4(ab13, cd13, 0xdd);
}

// The panel of W's columns from `column` on.
[[gnu::noinline]] void pack_panel(const char* codes, std::int64_t n, std::int64_t k, std::int64_t column, char* panel,
                                  std::int32_t* starts) {
  const std::int64_t left = k - column;
  const __mmask64 mask = left >= kPanel ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
  const __m512i factor = _mm512_set1_epi8(static_cast<char>(0x80));
  __m512i sums[4] = {};
  for (std::int64_t i = 0; i < n; i += 4, panel += kGroupBytes) {
    __m512i rows[4], groups[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) rows[r] = _mm512_maskz_loadu_epi8(i + r < n ? mask : 0, codes + (i + r) * k + column);
    weave(rows, groups);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      _mm512_storeu_si512(panel + q * 64, groups[q]);
      Int8Dot::add(sums[q], factor, groups[q]);
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) _mm512_storeu_si512(starts + 16 * q, _mm512_sub_epi32(_mm512_setzero_si512(), sums[q]));
}

template <class Panels>
void pack_transposed(const PackedWeight& w, void* out) {
  const std::int64_t n = w.n(), k = w.k(), bytes = Panels::panel_bytes(n);
  std::int32_t* starts = Panels::starts_in(out, k, n);
  parallel_region(n * k < kSerialMacs ? 1 : threads(), [&](int thread, int used) {
    const Range own = partition((k + kPanel - 1) / kPanel, thread, used);
    for (std::int64_t p = own.begin; p < own.end; ++p)
      pack_panel(static_cast<const char*>(w.codes()), n, k, p * kPanel, static_cast<char*>(out) + p * bytes,
                 starts + p * kPanel);
  });
}

template <class Product>
struct TransposedInt8 : Int8Panels<Product> {
  using Panels = Int8Panels<Product>;

  explicit TransposedInt8(const PackedWeight& w) : Panels(layout_of(w), w.k(), w.n()), column(w.scale()) {}

  static const void* layout_of(const PackedWeight& w) {
    static const char tag = 0;
    return w.layout(&tag, Panels::layout_bytes(w.k(), w.n()), pack_transposed<Panels>);
  }

  RoundedRows round(const LinearArgs& args, std::int64_t first, std::int64_t count, void* buffer, float* scale) const {
    const std::int64_t stride = round_up(args.x.cols, 64);
    char* out = static_cast<char*>(buffer);
    over_scaled_rows(args.x, column,
                     [&](const auto& row_at) { quantize_rows(first, count, args.x.cols, out, stride, scale, row_at); });
    return {out, stride};
  }

  const float* column;
};

}  // namespace
}  // namespace octavo::avx512_kernels
