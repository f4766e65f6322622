// Row formats of embedding tables as the AVX-512 bag kernels read them (cpu/bag_columns.hpp has the terms): 16 columns
// a vector, masked where the last is not full.
#pragma once

#include <immintrin.h>

#include "cpu/bag_columns.hpp"

namespace octavo::avx512_kernels {
namespace {

[[gnu::always_inline]] inline __m256i to_bf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}

template <class Element>
struct Elements {
  using Storage = Element;
  using Vector = __m512;
  using Tail = __mmask16;  // the lanes of the last vector that are columns
  static constexpr int lanes = 16;
  static constexpr std::int64_t vector_bytes = 16 * sizeof(Element);
  static std::int64_t at(std::int64_t column) { return column; }
  static __mmask16 tail(std::int64_t dim, std::int64_t) {
    return static_cast<__mmask16>((1u << ((dim - 1) % 16 + 1)) - 1);
  }

  template <int vectors>
  [[gnu::always_inline]] static inline void store(const MatrixView& out, std::int64_t at, const __m512* sum,
                                                  __mmask16 tail) {
    if (out.dtype == DType::f32) {
      float* y = static_cast<float*>(out.data) + at;
#pragma GCC unroll 8
      for (int i = 0; i < vectors; ++i) _mm512_mask_storeu_ps(y + 16 * i, i + 1 < vectors ? 0xffff : tail, sum[i]);
    } else {
      auto* y = static_cast<std::uint16_t*>(out.data) + at;
#pragma GCC unroll 8
      for (int i = 0; i < vectors; ++i)
        _mm256_mask_storeu_epi16(y + 16 * i, i + 1 < vectors ? 0xffff : tail, to_bf16(sum[i]));
    }
  }
};

template <class Element>
struct Unscaled : Elements<Element> {
  float scale(std::int64_t, float weight) const { return weight; }
  float bias(std::int64_t, float) const { return 0; }
};

struct Affine : Elements<std::uint8_t>, RowAffine {
  using RowAffine::RowAffine;
};

struct F32 : Unscaled<float> {
  explicit F32(const TableView&) {}
  template <int vectors>
  [[gnu::always_inline]] inline void add(__m512* sum, const float* x, __m512 scale, __mmask16 tail) const {
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) {
      const __m512 v = i + 1 < vectors ? _mm512_loadu_ps(x + 16 * i) : _mm512_maskz_loadu_ps(tail, x + 16 * i);
      sum[i] = _mm512_fmadd_ps(v, scale, sum[i]);
    }
  }
};

struct F16 : Unscaled<std::uint16_t> {
  explicit F16(const TableView&) {}
  [[gnu::always_inline]] static inline __m512 decode(__m256i bits) { return _mm512_cvtph_ps(bits); }
};
struct Bf16 : Unscaled<std::uint16_t> {
  explicit Bf16(const TableView&) {}
  [[gnu::always_inline]] static inline __m512 decode(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
};
template <class Half>
struct SixteenBit : Half {
  using Half::Half;
  template <int vectors>
  [[gnu::always_inline]] inline void add(__m512* sum, const std::uint16_t* x, __m512 scale, __mmask16 tail) const {
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) {
      const __m256i bits = i + 1 < vectors ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 16 * i))
                                           : _mm256_maskz_loadu_epi16(tail, x + 16 * i);
      sum[i] = _mm512_fmadd_ps(Half::decode(bits), scale, sum[i]);
    }
  }
};

struct Int8 : Affine {
  using Affine::Affine;
  template <int vectors>
  [[gnu::always_inline]] inline void add(__m512* sum, const std::uint8_t* x, __m512 scale, __mmask16 tail) const {
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) {
      const __m128i codes = i + 1 < vectors ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 16 * i))
                                            : _mm_maskz_loadu_epi8(tail, x + 16 * i);
      sum[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes)), scale, sum[i]);
    }
  }
};

// Sixteen columns are two dwords of codes. Each lane shifts its nibble down and looks it up: vpermps reads four bits.
struct Int4 : Affine {
  static constexpr std::int64_t vector_bytes = 8;
  static std::int64_t at(std::int64_t column) { return column / 2; }
  __mmask16 last;  // bytes of the last vector
  __m512 numbers;
  __m512i shifts, dwords;

  explicit Int4(const TableView& table)
      : Affine(table), last(static_cast<__mmask16>((1u << ((table.dim + 15) % 16 / 2 + 1)) - 1)) {
    numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    dwords = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  }

  // The 8 bytes of the last vector, or as many of them as there are.
  [[gnu::always_inline]] inline __m128i ending(const std::uint8_t* x, __mmask16 tail) const {
    if (tail == 0xffff) return _mm_loadu_si64(x);
    return _mm_maskz_loadu_epi8(last, x);
  }

  template <int vectors>
  [[gnu::always_inline]] inline __m512i load(const std::uint8_t* x, __mmask16 tail) const {
    const auto* whole = reinterpret_cast<const __m128i*>(x);
    const __m128i end = ending(x + 8 * (vectors - 1), tail);
    if constexpr (vectors == 1) return _mm512_castsi128_si512(end);
    const __m128i pair = vectors % 2 == 1 ? end : _mm_unpacklo_epi64(_mm_loadu_si64(x + 8 * (vectors - 2)), end);
    if constexpr (vectors == 2) return _mm512_castsi128_si512(pair);
    const __m512i first = _mm512_castsi128_si512(_mm_loadu_si128(whole));
    if constexpr (vectors <= 4) return _mm512_inserti32x4(first, pair, 1);
    const __m512i half = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    if constexpr (vectors <= 6) return _mm512_inserti32x4(half, pair, 2);
    return _mm512_inserti32x4(_mm512_inserti32x4(half, _mm_loadu_si128(whole + 2), 2), pair, 3);
  }

  template <int vectors>
  [[gnu::always_inline]] inline void add(__m512* sum, const std::uint8_t* x, __m512 scale, __mmask16 tail) const {
    const __m512i bytes = load<vectors>(x, tail);
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) {
      const __m512i from = _mm512_add_epi32(dwords, _mm512_set1_epi32(2 * i));
      const __m512i nibbles = _mm512_srlv_epi32(_mm512_permutexvar_epi32(from, bytes), shifts);
      sum[i] = _mm512_fmadd_ps(_mm512_permutexvar_ps(nibbles, numbers), scale, sum[i]);
    }
  }
};

// `E4m3Format`: how a kernel decodes E4M3.
template <class E4m3Format>
struct Formats {
  using F32 = avx512_kernels::F32;
  using F16 = SixteenBit<avx512_kernels::F16>;
  using Bf16 = SixteenBit<avx512_kernels::Bf16>;
  using E4m3 = E4m3Format;
  using Int8 = avx512_kernels::Int8;
  using Int4 = avx512_kernels::Int4;
};

}  // namespace
}  // namespace octavo::avx512_kernels
