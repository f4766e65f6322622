// W in E4M3 multiplied as BF16: codes are decoded by table, in registers for a few rows, else a panel at a time into
// cache. A panel's group is 128 bytes, permuted so that unpacking the decoded low and high bytes gives BF16 pairs.
#pragma once

#include <algorithm>

#include "cpu/avx512/linear_bf16_class.hpp"
#include "cpu/avx512/panel_packing.hpp"
#include "octavo/float8.hpp"

namespace octavo::avx512_kernels {
namespace {

// The bytes of the BF16 number of each code without its sign. All are normal numbers, zero or NaN.
struct DecodeTables {
  alignas(64) std::uint8_t low[128], high[128];
};
constexpr std::int64_t kE4m3GroupBytes = 128;

inline DecodeTables make_decode_tables() {
  DecodeTables tables;
  for (int code = 0; code < 128; ++code) {
    const std::uint16_t bits = encode_bf16(decode_e4m3(static_cast<std::uint8_t>(code)));
    tables.low[code] = static_cast<std::uint8_t>(bits);
    tables.high[code] = static_cast<std::uint8_t>(bits >> 8);
  }
  return tables;
}

struct E4m3Weights {
  static constexpr std::int64_t kStep = kE4m3GroupBytes;
  static constexpr int kVectors = 2;
  __m512i low0, low1, high0, high1, sign;

  E4m3Weights() {
    static const DecodeTables tables = make_decode_tables();
    low0 = _mm512_load_si512(tables.low);
    low1 = _mm512_load_si512(tables.low + 64);
    high0 = _mm512_load_si512(tables.high);
    high1 = _mm512_load_si512(tables.high + 64);
    sign = _mm512_set1_epi8(static_cast<char>(0x80));
  }

  // 64 codes -> BF16 pairs of 16 columns and of the next 16.
  [[gnu::always_inline]] inline void decode(__m512i codes, __m512i& left, __m512i& right) const {
    const __m512i low = _mm512_permutex2var_epi8(low0, codes, low1);
    const __m512i magnitude = _mm512_permutex2var_epi8(high0, codes, high1);
    const __m512i high = _mm512_ternarylogic_epi32(magnitude, codes, sign, 0xf8);  // magnitude | (codes & sign)
    left = _mm512_unpacklo_epi8(low, high);
    right = _mm512_unpackhi_epi8(low, high);
  }

  template <int V>
  [[gnu::always_inline]] inline void load(const char* w, __m512i (&out)[V]) const {
#pragma GCC unroll 2
    for (int v = 0; v < V; v += 2) decode(_mm512_loadu_si512(w + v * 32), out[v], out[v + 1]);
  }

  void decode_panel(const char* w, std::int64_t groups, char* out) const {
    for (std::int64_t g = 0; g < groups * 2; ++g, w += 64, out += 128) {
      __m512i left, right;
      decode(_mm512_loadu_si512(w), left, right);
      _mm512_storeu_si512(out, left);
      _mm512_storeu_si512(out + 64, right);
    }
  }
};

template <class Product>
struct E4m3Class {
  static constexpr std::int64_t kColumns = kPanel, kGroup = 2, kElementBytes = 2, kBlockRows = Product::kBlockRows,
                                kRowGrain = Product::kRowGrain,
                                kCutColumnsBelow = std::max<std::int64_t>(16, Product::kThreadRows);

  explicit E4m3Class(const PackedWeight& w) {
    static const char tag = 0;
    panels = static_cast<const char*>(w.layout(&tag, to_bytes(panel_bytes(w.k()) * ((w.n() + 63) / 64)), pack));
  }

  static std::int64_t panel_bytes(std::int64_t k) { return (k + 1) / 2 * kE4m3GroupBytes; }

  static void pack(const PackedWeight& w, void* out) {
    for_each_panel(w, [&](std::int64_t p, const char* rows, std::int64_t count) {
      pack_panel(rows, count, w.k(), static_cast<char*>(out) + p * panel_bytes(w.k()));
    });
  }

  // Four bytes of a column are its pairs of two groups. Byte half * 64 + lane * 16 + side * 8 + pair * 2 + e of a group
  // is column half * 32 + side * 16 + lane * 4 + pair's: lanes and sides as unpacklo and unpackhi have them.
  [[gnu::noinline]] static void pack_panel(const char* rows, std::int64_t count, std::int64_t k, char* panel) {
    alignas(64) std::uint16_t words[32];
    for (int word = 0; word < 32; ++word)
      words[word] = static_cast<std::uint16_t>(word / 4 % 2 * 32 + (word / 8 * 4 + word % 4) * 2);
    const __m512i first = _mm512_load_si512(words), second = _mm512_add_epi16(first, _mm512_set1_epi16(1));
    const std::int64_t groups = (k + 1) / 2;
    transpose_panel(rows, count, k, [&](std::int64_t i, const Piece& codes) {
      const auto store = [&](std::int64_t group, __m512i order) {
        for (int half = 0; half < 2; ++half)
          _mm512_storeu_si512(panel + group * kE4m3GroupBytes + half * 64,
                              _mm512_permutex2var_epi16(codes.columns[2 * half], order, codes.columns[2 * half + 1]));
      };
      store(2 * i, first);
      if (2 * i + 1 < groups) store(2 * i + 1, second);
    });
  }

  void multiply(Tile& t, std::int64_t rows, std::int64_t panel, std::int64_t begin, std::int64_t k) const {
    t.weights = panels + panel * panel_bytes(k) + begin / 2 * kE4m3GroupBytes;
    if (rows <= std::min<std::int64_t>(2, Product::kDecodeRows)) return multiply_codes<Fetch::none>(t, rows);
    if (rows <= Product::kDecodeRows) return multiply_codes<Fetch::stream>(t, rows);
    fetch_next(t, panel_bytes(k), t.groups * kE4m3GroupBytes);
    char* decoded = static_cast<char*>(scratch(3, to_bytes(t.groups * kGroupBytes)));
    weights.decode_panel(t.weights, t.groups, decoded);
    t.weights = decoded;
    Product::multiply(t, rows);
  }

  // Four tables leave registers for 4 x 64 or 8 x 32 sums.
  template <Fetch fetch>
  void multiply_codes(const Tile& t, std::int64_t rows) const {
    Tiles<Bf16Dot, E4m3Weights, fetch> tiles{t, weights};
    if (rows <= 4 && t.columns > 32) {
      tiles.rest(rows);
    } else if (rows < 8) {
      tiles.rest_halves(rows);
    } else {
      tiles.template next_halves<8>();
    }
  }

  E4m3Weights weights;
  const char* panels;
};

}  // namespace
}  // namespace octavo::avx512_kernels
