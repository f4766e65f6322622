// x and W in symmetric INT8, INT32 sums: vpdpbusd takes unsigned activations, so x is kept as code + 128 and
// -128 * (sum of the column's weights) is where each sum starts.
#include <algorithm>

#include "cpu/avx512/linear_activations.hpp"

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

template <bool finite, class Row>
void quantize_row(const Row& row, std::int64_t k, float multiplier, char* out) {
  const __m512 m = _mm512_set1_ps(multiplier);
  std::int64_t i = 0;
  for (; i + 64 <= k; i += 64) quantize64<true, finite>(row, i, 64, m, out);
  if (i < k) quantize64<false, finite>(row, i, k - i, m, out);
}

template <class Row>
void quantize_rows(const MatrixView& x, std::int64_t first, std::int64_t count, char* out, std::int64_t stride,
                   float* scale) {
  for (std::int64_t r = 0; r < count; ++r, out += stride) {
    const Row row(row_of(x, first + r));
    const Magnitude magnitude = magnitude_of(row, x.cols);
    const ScalePair pair = scale_for(magnitude.largest_finite, DType::i8, false);
    scale[r] = magnitude.nan ? __builtin_nanf("") : pair.scale;
    if (magnitude.finite) {
      quantize_row<true>(row, x.cols, pair.multiplier, out);
    } else {
      quantize_row<false>(row, x.cols, pair.multiplier, out);
    }
  }
}

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

struct Int8Class {
  static constexpr std::int64_t kGroup = 4, kElementBytes = 1, kBlockRows = 48, kCutColumnsBelow = 4;

  explicit Int8Class(const PackedWeight& w) {
    static const char tag = 0;
    const std::int64_t all = (w.n() + kPanel - 1) / kPanel;
    panels = static_cast<const char*>(
        w.layout(&tag, to_bytes(all * (panel_bytes(w.k()) + kPanel * std::int64_t{sizeof(std::int32_t)})), pack));
    starts = reinterpret_cast<const std::int32_t*>(panels + all * panel_bytes(w.k()));
  }

  static std::int64_t panel_bytes(std::int64_t k) { return (k + 3) / 4 * kGroupBytes; }

  static void pack(const PackedWeight& w, void* out) {
    const auto* codes = static_cast<const std::int8_t*>(w.codes());
    auto* to = static_cast<std::int8_t*>(out);
    const std::int64_t n = w.n(), k = w.k();
    for (std::int64_t panel = 0; panel < n; panel += kPanel)
      for (std::int64_t i = 0; i < k; i += 4)
        for (std::int64_t column = panel; column < panel + kPanel; ++column)
          for (std::int64_t j = i; j < i + 4; ++j) *to++ = column < n && j < k ? codes[column * k + j] : std::int8_t{0};
    auto* start = reinterpret_cast<std::int32_t*>(to);
    for (std::int64_t column = 0; column < round_up(n, kPanel); ++column) {
      std::uint32_t sum = 0;  // modulo 2^32, as the dot products
      for (std::int64_t j = 0; column < n && j < k; ++j) sum += static_cast<std::uint32_t>(codes[column * k + j]);
      *start++ = static_cast<std::int32_t>(0u - 128u * sum);
    }
  }

  RoundedRows round(const LinearArgs& args, std::int64_t first, std::int64_t count, void* buffer, float* scale) const {
    const std::int64_t stride = round_up(args.x.cols, 64);
    char* out = static_cast<char*>(buffer);
    if (args.x.dtype == DType::i8) {
      std::copy_n(args.x_scale + first, count, scale);
      shift_codes(args.x, first, count, out, stride);
    } else if (args.x.dtype == DType::bf16) {
      quantize_rows<Bf16Row>(args.x, first, count, out, stride, scale);
    } else {
      quantize_rows<F32Row>(args.x, first, count, out, stride, scale);
    }
    return {out, stride};
  }

  void multiply(Tile t, std::int64_t rows, std::int64_t panel, std::int64_t begin, std::int64_t k) const {
    t.weights = panels + panel * panel_bytes(k) + begin / 4 * kGroupBytes;
    t.start = starts + panel * kPanel;
    multiply_rows<Int8Dot>(t, rows);
  }

  const char* panels;
  const std::int32_t* starts;
};

}  // namespace

void linear_int8_dynamic(const LinearArgs& args) { run_linear<Int8Class>(args); }

}  // namespace octavo::avx512_kernels
