// Products in symmetric INT8 with INT32 sums: vpdpbusd takes unsigned activations, so they are kept as code + 128 and
// -128 * (sum of the column's weights) is where each sum starts.
#pragma once

#include "cpu/avx512/linear_activations.hpp"
#include "cpu/avx512/linear_tile.hpp"

namespace octavo::avx512_kernels {
namespace {

// 64 codes; `left` elements of them exist, the others become 0 and meet weights that are 0. Finite rows need no clamp:
// scaling maps their largest magnitude to 127.
template <bool full, bool finite, class Row>
[[gnu::always_inline]] inline void quantize64(const Row& row, std::int64_t i, std::int64_t left, __m512 m, char* out) {
  const auto codes = [&](std::int64_t offset) {
    const __m512 v = _mm512_mul_ps(row.load(i + offset, full ? 0xffff : first_lanes(left - offset)), m);
    if constexpr (finite) return _mm512_cvtps_epi32(v);
    return _mm512_cvtps_epi32(_mm512_max_ps(_mm512_min_ps(v, _mm512_set1_ps(127.0f)), _mm512_set1_ps(-127.0f)));
  };
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i low = _mm512_packs_epi32(codes(0), codes(16)), high = _mm512_packs_epi32(codes(32), codes(48));
  const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
  _mm512_storeu_si512(out + i, _mm512_xor_si512(bytes, _mm512_set1_epi8(static_cast<char>(0x80))));
}

// Finite BF16 rows, even and odd columns apart: as FP32, + 128 and rounded by the adder, so that the low 16 bits of a
// sum are the byte; the two halves then lie side by side in order. No conversion, one pack.
template <bool full>
[[gnu::always_inline]] inline void quantize64_bf16(const std::uint16_t* x, std::int64_t left, __m512 m, char* out) {
  const __m512 magic = _mm512_set1_ps(12582912.0f + 128.0f);  // 1.5 * 2^23
  const auto words = [&](std::int64_t offset) {
    const std::int64_t there = left - offset;
    const __mmask32 mask = there >= 32 ? ~__mmask32{0} : there <= 0 ? 0 : (__mmask32{1} << there) - 1;
    const __m512i pairs = full ? _mm512_loadu_si512(x + offset) : _mm512_maskz_loadu_epi16(mask, x + offset);
    const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    const __m512i low = _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(even, m), magic));
    const __m512i high = _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(odd, m), magic));
    return _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_slli_epi32(high, 16));
  };
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  const __m512i first = words(0), second = words(32);
  _mm512_storeu_si512(out, _mm512_permutexvar_epi64(order, _mm512_packus_epi16(first, second)));
}

// Functions of their own: inlined, their constants would spill.
[[gnu::noinline]] inline void quantize_finite_row(const Bf16Row& row, std::int64_t k, float multiplier, char* out) {
  const __m512 m = _mm512_set1_ps(multiplier);
  std::int64_t i = 0;
  for (; i + 64 <= k; i += 64) quantize64_bf16<true>(row.x + i, 64, m, out + i);
  if (i < k) quantize64_bf16<false>(row.x + i, k - i, m, out + i);
}

template <bool finite, class Row>
[[gnu::noinline]] void quantize_row(const Row& row, std::int64_t k, float multiplier, char* out) {
  const __m512 m = _mm512_set1_ps(multiplier);
  std::int64_t i = 0;
  for (; i + 64 <= k; i += 64) quantize64<true, finite>(row, i, 64, m, out);
  if (i < k) quantize64<false, finite>(row, i, k - i, m, out);
}

template <class Row>
inline void quantize_finite_row(const Row& row, std::int64_t k, float multiplier, char* out) {
  quantize_row<true>(row, k, multiplier, out);
}

// row_at(r): row r as codes + 128, its scale into `scale`; one that holds NaN gets scale NaN.
template <class RowAt>
void quantize_rows(std::int64_t first, std::int64_t count, std::int64_t columns, char* out, std::int64_t stride,
                   float* scale, RowAt&& row_at) {
  for (std::int64_t r = 0; r < count; ++r, out += stride) {
    const auto row = row_at(first + r);
    const Magnitude magnitude = magnitude_of(row, columns);
    const ScalePair pair = scale_for(magnitude.largest_finite, DType::i8, false);
    scale[r] = magnitude.nan ? __builtin_nanf("") : pair.scale;
    if (magnitude.finite) {
      quantize_finite_row(row, columns, pair.multiplier, out);
    } else {
      quantize_row<false>(row, columns, pair.multiplier, out);
    }
  }
}

// Panels of 64 columns in groups of four codes, and behind them where each column's sum starts.
template <class Product>
struct Int8Panels {
  static constexpr std::int64_t kColumns = kPanel, kGroup = 4, kElementBytes = 1, kBlockRows = Product::kBlockRows,
                                kRowGrain = Product::kRowGrain, kCutColumnsBelow = Product::kThreadRows;

  // `depth` codes a column.
  static std::int64_t panel_bytes(std::int64_t depth) { return (depth + 3) / 4 * kGroupBytes; }

  static std::size_t layout_bytes(std::int64_t columns, std::int64_t depth) {
    return to_bytes((columns + kPanel - 1) / kPanel *
                    (panel_bytes(depth) + kPanel * std::int64_t{sizeof(std::int32_t)}));
  }

  static std::int32_t* starts_in(void* layout, std::int64_t columns, std::int64_t depth) {
    return reinterpret_cast<std::int32_t*>(static_cast<char*>(layout) +
                                           (columns + kPanel - 1) / kPanel * panel_bytes(depth));
  }

  Int8Panels(const void* layout, std::int64_t columns, std::int64_t depth)
      : panels(static_cast<const char*>(layout)), starts(starts_in(const_cast<void*>(layout), columns, depth)) {}

  void multiply(Tile& t, std::int64_t rows, std::int64_t panel, std::int64_t begin, std::int64_t depth) const {
    t.weights = panels + panel * panel_bytes(depth) + begin / 4 * kGroupBytes;
    fetch_next(t, panel_bytes(depth), t.groups * kGroupBytes);
    t.start = starts + panel * kPanel;
    Product::multiply(t, rows);
  }

  const char* panels;
  const std::int32_t* starts;
};

}  // namespace
}  // namespace octavo::avx512_kernels
