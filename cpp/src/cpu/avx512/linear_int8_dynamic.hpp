// x and W in symmetric INT8.
#pragma once

#include <algorithm>

#include "cpu/avx512/linear_int8_class.hpp"
#include "cpu/avx512/panel_packing.hpp"

namespace octavo::avx512_kernels {
namespace {

inline void shift_codes(const MatrixView& x, std::int64_t first, std::int64_t count, char* out, std::int64_t stride) {
  for (std::int64_t r = 0; r < count; ++r, out += stride) {
    const char* row = row_of(x, first + r);
    for (std::int64_t i = 0; i < x.cols; i += 64) {
      const std::int64_t left = x.cols - i;
      const __mmask64 mask = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
      const __m512i codes = _mm512_maskz_loadu_epi8(mask, row + i);
      _mm512_storeu_si512(out + i, _mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80))));
    }
  }
}

template <class Row>
void quantize_matrix(const MatrixView& x, std::int64_t first, std::int64_t count, char* out, std::int64_t stride,
                     float* scale) {
  quantize_rows(first, count, x.cols, out, stride, scale, [&](std::int64_t r) { return Row(row_of(x, r)); });
}

template <class Product>
struct Int8Class : Int8Panels<Product> {
  using Panels = Int8Panels<Product>;

  explicit Int8Class(const PackedWeight& w) : Panels(layout_of(w), w.n(), w.k()) {}

  static const void* layout_of(const PackedWeight& w) {
    static const char tag = 0;
    return w.layout(&tag, Panels::layout_bytes(w.n(), w.k()), pack);
  }

  static void pack(const PackedWeight& w, void* out) {
    const std::int64_t k = w.k();
    std::int32_t* starts = Panels::starts_in(out, w.n(), k);
    for_each_panel(w, [&](std::int64_t p, const char* rows, std::int64_t count) {
      pack_panel(rows, count, k, static_cast<char*>(out) + p * Panels::panel_bytes(k));
      for (std::int64_t r = 0; r < kPanel; ++r) starts[p * kPanel + r] = r < count ? start_of(rows + r * k, k) : 0;
    });
  }

  [[gnu::noinline]] static void pack_panel(const char* rows, std::int64_t count, std::int64_t k, char* panel) {
    transpose_panel(rows, count, k, [&](std::int64_t i, const Piece& codes) { store_group(panel, i, codes); });
  }

  // -128 times the sum of a row's codes, modulo 2^32 as the dot products.
  [[gnu::noinline]] static std::int32_t start_of(const char* codes, std::int64_t k) {
    __m512i sum = _mm512_setzero_si512();
    const __m512i factor = _mm512_set1_epi8(static_cast<char>(0x80));
    for (std::int64_t i = 0; i < k; i += 64) {
      const __mmask64 mask = k - i >= 64 ? ~__mmask64{0} : (__mmask64{1} << (k - i)) - 1;
      Int8Dot::add(sum, factor, _mm512_maskz_loadu_epi8(mask, codes + i));
    }
    return static_cast<std::int32_t>(0u - static_cast<std::uint32_t>(_mm512_reduce_add_epi32(sum)));
  }

  RoundedRows round(const LinearArgs& args, std::int64_t first, std::int64_t count, void* buffer, float* scale) const {
    const std::int64_t stride = round_up(args.x.cols, 64);
    char* out = static_cast<char*>(buffer);
    if (args.x.dtype == DType::i8) {
      std::copy_n(args.x_scale + first, count, scale);
      shift_codes(args.x, first, count, out, stride);
    } else if (args.x.dtype == DType::bf16) {
      quantize_matrix<Bf16Row>(args.x, first, count, out, stride, scale);
    } else {
      quantize_matrix<F32Row>(args.x, first, count, out, stride, scale);
    }
    return {out, stride};
  }
};

}  // namespace
}  // namespace octavo::avx512_kernels
