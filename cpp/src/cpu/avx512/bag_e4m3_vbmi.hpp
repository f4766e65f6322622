// E4M3 rows with AVX-512 VBMI: codes become BF16 by table, NaN included.
#pragma once

#include "cpu/avx512/bag_formats.hpp"
#include "octavo/float8.hpp"

namespace octavo::avx512_kernels {
namespace {

// The bytes of the BF16 number of each code without its sign (normal numbers, zero or NaN), and where column c of 64
// stands so that unpacking bytes and splitting words leave 16 columns in order in each vector.
struct E4m3Tables {
  alignas(64) std::uint8_t low[128], high[128], order[64];
};

inline E4m3Tables make_e4m3_tables() {
  E4m3Tables tables;
  for (int code = 0; code < 128; ++code) {
    const std::uint16_t bits = encode_bf16(decode_e4m3(static_cast<std::uint8_t>(code)));
    tables.low[code] = static_cast<std::uint8_t>(bits);
    tables.high[code] = static_cast<std::uint8_t>(bits >> 8);
  }
  for (int c = 0; c < 64; ++c) {
    const int vector = c / 16, lane = c % 16 / 4, pair = c % 4;
    tables.order[lane * 16 + vector / 2 * 8 + pair * 2 + vector % 2] = static_cast<std::uint8_t>(c);
  }
  return tables;
}

struct E4m3ByTable : Elements<std::uint8_t> {
  RowScales scales;
  __m512i low0, low1, high0, high1, order;

  explicit E4m3ByTable(const TableView& table) : scales(table) {
    static const E4m3Tables tables = make_e4m3_tables();
    low0 = _mm512_load_si512(tables.low);
    low1 = _mm512_load_si512(tables.low + 64);
    high0 = _mm512_load_si512(tables.high);
    high1 = _mm512_load_si512(tables.high + 64);
    order = _mm512_load_si512(tables.order);
  }
  float scale(std::int64_t row, float weight) const { return scales(row) * weight; }
  float bias(std::int64_t, float) const { return 0; }

  // Up to 64 codes of which the last vector has `tail`, and no cache line that prefetch_row does not fetch.
  template <int vectors>
  [[gnu::always_inline]] static inline __m512i load(const std::uint8_t* x, __mmask16 tail) {
    const __mmask32 upper = __mmask32{0xffff} | __mmask32{tail} << 16;
    if constexpr (vectors == 1) return _mm512_castsi128_si512(_mm_maskz_loadu_epi8(tail, x));
    if constexpr (vectors == 2) return _mm512_castsi256_si512(_mm256_maskz_loadu_epi8(upper, x));
    if constexpr (vectors == 4) return _mm512_maskz_loadu_epi8(~std::uint32_t{0} | __mmask64{upper} << 32, x);
    const __m512i lower = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    return _mm512_inserti32x4(lower, _mm_maskz_loadu_epi8(tail, x + 32), 2);
  }

  template <int vectors>
  [[gnu::always_inline]] inline void add(__m512* sum, const std::uint8_t* x, __m512 scale, __mmask16 tail) const {
    constexpr int part = vectors < 4 ? vectors : 4;
    const __m512i codes = _mm512_permutexvar_epi8(order, load<part>(x, vectors > 4 ? 0xffff : tail));
    const __m512i low = _mm512_permutex2var_epi8(low0, codes, low1);
    const __m512i magnitude = _mm512_permutex2var_epi8(high0, codes, high1);
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    const __m512i high = _mm512_ternarylogic_epi32(magnitude, codes, sign, 0xf8);  // magnitude | (codes & sign)
    const __m512i left = _mm512_unpacklo_epi8(low, high);
    sum[0] = _mm512_fmadd_ps(even(left), scale, sum[0]);
    if constexpr (part > 1) sum[1] = _mm512_fmadd_ps(odd(left), scale, sum[1]);
    if constexpr (part > 2) {
      const __m512i right = _mm512_unpackhi_epi8(low, high);
      sum[2] = _mm512_fmadd_ps(even(right), scale, sum[2]);
      if constexpr (part > 3) sum[3] = _mm512_fmadd_ps(odd(right), scale, sum[3]);
    }
    if constexpr (vectors > 4) add<vectors - 4>(sum + 4, x + 64, scale, tail);
  }

  [[gnu::always_inline]] static inline __m512 even(__m512i words) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
  }
  [[gnu::always_inline]] static inline __m512 odd(__m512i words) {
    return _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
  }
};

}  // namespace
}  // namespace octavo::avx512_kernels
