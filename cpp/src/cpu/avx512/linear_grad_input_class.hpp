// W^T for BF16 dot products: panels of 64 columns of W, pairs of its rows.
#pragma once

#include "cpu/avx512/bf16_pairs.hpp"
#include "cpu/avx512/linear_bf16_class.hpp"
#include "cpu/avx512/linear_grad_input.hpp"

namespace octavo::avx512_kernels {
namespace {

// Sixteen codes as FP32.
[[gnu::always_inline]] inline __m512 decode_codes(DType format, const char* p, __mmask16 mask) {
  const __m128i bytes = _mm_maskz_loadu_epi8(mask, p);
  if (format == DType::i8) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  const __m512i codes = _mm512_cvtepu8_epi32(bytes);
  const __m512i magnitude = _mm512_and_si512(codes, _mm512_set1_epi32(0x7f));
  const __m512i sign = _mm512_slli_epi32(_mm512_xor_si512(codes, magnitude), 24);
  __m512i bits = _mm512_castps_si512(
      _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_and_si512(magnitude, _mm512_set1_epi32(7))), _mm512_set1_ps(0x1p-9f)));
  const __m512i normal = _mm512_add_epi32(_mm512_slli_epi32(magnitude, 20), _mm512_set1_epi32(120 << 23));
  bits = _mm512_mask_mov_epi32(bits, _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(7)), normal);
  bits = _mm512_mask_mov_epi32(bits, _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7f)),
                               _mm512_set1_epi32(0x7fc00000));
  return _mm512_castsi512_ps(_mm512_or_si512(bits, sign));
}

// Rows of eight-bit codes times their scales; scale 1 leaves the codes themselves.
struct CodePair {
  DType format;
  float scale0, scale1;
  [[gnu::always_inline]] inline __m512i load(const char* row0, const char* row1, std::int64_t i, __mmask16 mask) const {
    const __m512 low = _mm512_mul_ps(decode_codes(format, row0 + i, mask), _mm512_set1_ps(scale0));
    const __m512 high = row1 == nullptr ? _mm512_setzero_ps()
                                        : _mm512_mul_ps(decode_codes(format, row1 + i, mask), _mm512_set1_ps(scale1));
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  }
};

// One group more than a panel holds: groups packed side by side then fall into different cache sets.
inline std::int64_t transposed_panel_bytes(std::int64_t n) { return ((n + 1) / 2 + 1) * kGroupBytes; }

// W [N, K] as BF16 panels of W^T: its values, or with `codes` the codes alone.
template <bool codes>
void pack_transposed(const PackedWeight& w, void* out) {
  const std::int64_t n = w.n(), k = w.k(), panels = (k + kPanel - 1) / kPanel, groups = (n + 1) / 2;
  const std::int64_t bytes = static_cast<std::int64_t>(size_of(w.format()));
  parallel_region(n * k < kSerialMacs ? 1 : threads(), [&](int thread, int used) {
    const Range own = partition(groups, thread, used);
    for (std::int64_t g = own.begin; g < own.end; ++g) {
      const char* row0 = static_cast<const char*>(w.codes()) + 2 * g * k * bytes;
      const char* row1 = 2 * g + 1 < n ? row0 + k * bytes : nullptr;
      const auto weave_row = [&](const auto& source_at) {  // of a panel's first column
        for (std::int64_t p = 0; p < panels; ++p)
          weave_panel(source_at(p * kPanel), row0, row1, p * kPanel, k,
                      static_cast<char*>(out) + p * transposed_panel_bytes(n) + g * kGroupBytes);
      };
      if (w.format() == DType::bf16) {
        weave_row([](std::int64_t) { return Bf16Pair{}; });
      } else {
        static_assert(kScaleBlock % kPanel == 0);
        weave_row([&](std::int64_t column) {
          if (codes) return CodePair{w.format(), 1.0f, 1.0f};
          return CodePair{w.format(), w.scale_at(2 * g, column),
                          row1 != nullptr ? w.scale_at(2 * g + 1, column) : 1.0f};
        });
      }
    }
  });
}

template <class Product, bool codes>
struct TransposedClass {
  static constexpr std::int64_t kColumns = kPanel, kGroup = 2, kElementBytes = 2, kBlockRows = Product::kBlockRows,
                                kRowGrain = Product::kRowGrain, kCutColumnsBelow = Product::kThreadRows;

  explicit TransposedClass(const PackedWeight& w) {
    static const char tag = 0;
    const std::int64_t all = transposed_panel_bytes(w.n()) * ((w.k() + kPanel - 1) / kPanel);
    panels = static_cast<const char*>(w.layout(&tag, to_bytes(all), pack_transposed<codes>));
  }

  void multiply(Tile& t, std::int64_t rows, std::int64_t panel, std::int64_t begin, std::int64_t n) const {
    t.weights = panels + panel * transposed_panel_bytes(n) + begin / 2 * kGroupBytes;
    fetch_next(t, transposed_panel_bytes(n), t.groups * kGroupBytes);
    Product::multiply(t, rows);
  }

  const char* panels;
};

}  // namespace
}  // namespace octavo::avx512_kernels
