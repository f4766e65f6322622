// Rows narrower than FP32 as the AVX-512 backward reads and rounds them: the scalar codecs of float8.hpp and
// bag_random.hpp, 16 columns at a time. Includers are compiled with -ffp-contract=off.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <limits>

#include "cpu/bag_random.hpp"
#include "cpu/bag_update.hpp"
#include "octavo/quantize.hpp"

namespace octavo::avx512_kernels {
namespace {

// Calls body(first column, mask) for 16 columns at a time; only the last call's mask is not a constant.
template <class Body>
[[gnu::always_inline]] inline void for_columns(std::int64_t dim, Body&& body) {
  std::int64_t c = 0;
  for (; c + 16 <= dim; c += 16) body(c, __mmask16{0xffff});
  if (c < dim) body(c, static_cast<__mmask16>((1u << (dim - c)) - 1));
}

[[gnu::always_inline]] inline bool whole(__mmask16 mask) { return __builtin_constant_p(mask) && mask == 0xffff; }

[[gnu::always_inline]] inline __m512 load(const float* x, __mmask16 mask) {
  return whole(mask) ? _mm512_loadu_ps(x) : _mm512_maskz_loadu_ps(mask, x);
}

[[gnu::always_inline]] inline void store(float* x, __mmask16 mask, __m512 v) {
  whole(mask) ? _mm512_storeu_ps(x, v) : _mm512_mask_storeu_ps(x, mask, v);
}

[[gnu::always_inline]] inline __m128i load(const std::uint8_t* x, __mmask16 mask) {
  return whole(mask) ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(x)) : _mm_maskz_loadu_epi8(mask, x);
}

[[gnu::always_inline]] inline void store(std::uint8_t* x, __mmask16 mask, __m512i codes) {
  whole(mask) ? _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm512_cvtepi32_epi8(codes))
              : _mm512_mask_cvtepi32_storeu_epi8(x, mask, codes);
}

[[gnu::always_inline]] inline __m512i random_bits(RandomRow row, std::int64_t first_column) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i column = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(first_column)));
  const auto folded = [](__m512i x, int shift) { return _mm512_xor_si512(x, _mm512_srli_epi32(x, shift)); };
  const auto word = [](std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); };
  __m512i x = _mm512_xor_si512(_mm512_mullo_epi32(column, word(kColumn)), word(row.low));
  x = _mm512_mullo_epi32(folded(x, 16), word(kMix1));
  x = _mm512_add_epi32(folded(x, 15), word(row.high));
  x = _mm512_mullo_epi32(folded(x, 15), word(kMix2));
  return folded(x, 16);
}

// `steps` >= 0 to a whole number: one of the two around it, at random, or the nearest.
template <bool stochastic>
[[gnu::always_inline]] inline __m512i to_whole(__m512 steps, __m512i random) {
  if constexpr (!stochastic) return _mm512_cvtps_epi32(steps);
  const __m512i below = _mm512_cvttps_epi32(steps);
  const __m512 uniform = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(random, 8)), _mm512_set1_ps(0x1p-24f));
  const __mmask16 up = _mm512_cmp_ps_mask(uniform, _mm512_sub_ps(steps, _mm512_cvtepi32_ps(below)), _CMP_LT_OQ);
  return _mm512_mask_add_epi32(below, up, below, _mm512_set1_epi32(1));
}

// What is added to FP32 bits before the lower `bits` of them are cut off.
template <bool stochastic, int bits>
[[gnu::always_inline]] inline __m512i rounding_term(__m512i x, __m512i random) {
  if constexpr (stochastic) return _mm512_and_si512(random, _mm512_set1_epi32((1 << bits) - 1));
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, bits), _mm512_set1_epi32(1));
  return _mm512_add_epi32(_mm512_set1_epi32((1 << (bits - 1)) - 1), odd);
}

struct Bf16Row {
  static void decode(const TableView&, std::uint64_t, const void* row, std::int64_t dim, float* x) {
    const auto* codes = static_cast<const std::uint16_t*>(row);
    for_columns(dim, [&](std::int64_t c, __mmask16 mask) {
      const __m256i bits = _mm256_maskz_loadu_epi16(mask, codes + c);
      _mm512_storeu_ps(x + c, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)));
    });
  }

  template <bool stochastic>
  static void encode(const TableView&, std::uint64_t, void* row, std::int64_t dim, const float* x, RandomRow random) {
    auto* codes = static_cast<std::uint16_t*>(row);
    for_columns(dim, [&](std::int64_t c, __mmask16 mask) {
      const __m512i bits = _mm512_castps_si512(_mm512_loadu_ps(x + c));
      const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
      const __m512i infinity = _mm512_set1_epi32(0x7f800000);
      const __mmask16 finite = _mm512_cmplt_epi32_mask(magnitude, infinity);
      const __mmask16 nan = _mm512_cmpgt_epi32_mask(magnitude, infinity);
      __m512i out = _mm512_mask_or_epi32(bits, nan, bits, _mm512_set1_epi32(0x400000));
      out = _mm512_mask_add_epi32(out, finite, bits, rounding_term<stochastic, 16>(bits, random_bits(random, c)));
      _mm256_mask_storeu_epi16(codes + c, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(out, 16)));
    });
  }
};

struct F16Row {
  static void decode(const TableView&, std::uint64_t, const void* row, std::int64_t dim, float* x) {
    const auto* codes = static_cast<const std::uint16_t*>(row);
    for_columns(dim, [&](std::int64_t c, __mmask16 mask) {
      _mm512_storeu_ps(x + c, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, codes + c)));
    });
  }

  template <bool stochastic>
  static void encode(const TableView&, std::uint64_t, void* row, std::int64_t dim, const float* x, RandomRow random) {
    auto* codes = static_cast<std::uint16_t*>(row);
    for_columns(dim, [&](std::int64_t c, __mmask16 mask) {
      const __m512 v = _mm512_loadu_ps(x + c);
      __m256i out = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      if constexpr (stochastic) {
        const __m512i bits = _mm512_castps_si512(v);
        const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)), drawn = random_bits(random, c);
        const __mmask16 between = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(0x47800000));   // below 2^16
        const __mmask16 subnormal = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(113 << 23));  // below 2^-14
        const __m512i rounded = _mm512_add_epi32(magnitude, rounding_term<true, 13>(magnitude, drawn));
        __m512i code = _mm512_sub_epi32(_mm512_srli_epi32(rounded, 13), _mm512_set1_epi32(112 << 10));
        const __m512 steps = _mm512_mul_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(0x1p24f));
        code = _mm512_mask_mov_epi32(code, subnormal, to_whole<true>(steps, drawn));
        const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x8000));
        out = _mm256_mask_mov_epi16(out, between, _mm512_cvtepi32_epi16(_mm512_or_si512(code, sign)));
      }
      _mm256_mask_storeu_epi16(codes + c, mask, out);
    });
  }
};

struct E4m3Row {
  // Through FP16: its exponent field takes E4M3's, 8 too small.
  static void decode(const TableView& table, std::uint64_t row_number, const void* row, std::int64_t dim, float* x) {
    const auto* codes = static_cast<const std::uint8_t*>(row);
    const __m512 scale = _mm512_set1_ps(*table.scale_of(row_number));
    for_columns(dim, [&](std::int64_t c, __mmask16 mask) {
      const __m128i bytes = load(codes + c, mask), magnitude = _mm_set1_epi8(0x7f);
      const __mmask16 nan = _mm_cmpeq_epi8_mask(_mm_and_si128(bytes, magnitude), magnitude);
      const __m256i words = _mm256_and_si256(_mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7),
                                             _mm256_set1_epi16(static_cast<short>(0xbfff)));
      const __m512 v = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtph_ps(words), _mm512_set1_ps(256.0f)), scale);
      _mm512_storeu_ps(x + c, _mm512_mask_mov_ps(v, nan, _mm512_set1_ps(__builtin_nanf(""))));
    });
  }

  template <bool stochastic>
  [[gnu::always_inline]] static inline __m512i code(__m512 y, __m512i random) {
    const __m512i bits = _mm512_castps_si512(y);
    __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    const __mmask16 nan = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f800000));
    magnitude = _mm512_min_epi32(magnitude, _mm512_set1_epi32(0x43e00000));                        // 448
    const __mmask16 subnormal = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(121 << 23));  // below 2^-6
    const __m512i rounded = _mm512_add_epi32(magnitude, rounding_term<stochastic, 20>(magnitude, random));
    __m512i out = _mm512_sub_epi32(_mm512_srli_epi32(rounded, 20), _mm512_set1_epi32(120 << 3));
    const __m512 steps = _mm512_mul_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(512.0f));
    out = _mm512_mask_mov_epi32(out, subnormal, to_whole<stochastic>(steps, random));
    out = _mm512_mask_mov_epi32(out, nan, _mm512_set1_epi32(0x7f));
    const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80));
    return _mm512_or_si512(out, sign);
  }

  template <bool stochastic>
  static void encode(const TableView& table, std::uint64_t row_number, void* row, std::int64_t dim, const float* x,
                     RandomRow random) {
    auto* codes = static_cast<std::uint8_t*>(row);
    __m512i largest = _mm512_setzero_si512();
    for_columns(dim, [&](std::int64_t c, __mmask16 mask) {
      const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(load(x + c, mask)), _mm512_set1_epi32(0x7fffffff));
      const __mmask16 finite = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f800000));
      largest = _mm512_mask_max_epi32(largest, finite, largest, magnitude);
    });
    const float amax = std::bit_cast<float>(_mm512_reduce_max_epi32(largest));
    const ScalePair pair = scale_for(amax, DType::e4m3, false);
    *table.scale_of(row_number) = pair.scale;
    const __m512 multiplier = _mm512_set1_ps(pair.multiplier);
    for_columns(dim, [&](std::int64_t c, __mmask16 mask) {
      const __m512 y = _mm512_mul_ps(load(x + c, mask), multiplier);
      store(codes + c, mask, code<stochastic>(y, random_bits(random, c)));
    });
  }
};

// How 16 unsigned codes lie in memory.
struct CodeBytes {
  static constexpr float kLargest = 255.0f;
  static std::int64_t at(std::int64_t column) { return column; }
  [[gnu::always_inline]] static inline __m512i read(const std::uint8_t* x, __mmask16 mask) {
    return _mm512_cvtepu8_epi32(load(x, mask));
  }
  [[gnu::always_inline]] static inline void write(std::uint8_t* x, __mmask16 mask, __m512i codes) {
    store(x, mask, codes);
  }
};

struct CodeNibbles {
  static constexpr float kLargest = 15.0f;
  static std::int64_t at(std::int64_t column) { return column / 2; }
  [[gnu::always_inline]] static inline __mmask8 bytes(__mmask16 mask) {
    return whole(mask) ? 0xff : static_cast<__mmask8>((1u << (__builtin_popcount(mask) + 1) / 2) - 1);
  }
  [[gnu::always_inline]] static inline __m512i read(const std::uint8_t* x, __mmask16 mask) {
    const __m128i pairs = _mm_cvtepu8_epi16(_mm_maskz_loadu_epi8(bytes(mask), x));  // 0 0 odd even
    const __m128i apart = _mm_or_si128(pairs, _mm_slli_epi16(pairs, 4));
    return _mm512_cvtepu8_epi32(_mm_and_si128(apart, _mm_set1_epi8(15)));
  }
  [[gnu::always_inline]] static inline void write(std::uint8_t* x, __mmask16 mask, __m512i codes) {
    const __m128i apart = _mm512_maskz_cvtepi32_epi8(mask, codes);  // a row's last half byte is 0
    const __m128i pairs = _mm_maddubs_epi16(apart, _mm_set1_epi16(0x1001));
    _mm_mask_storeu_epi8(x, bytes(mask), _mm_cvtepi16_epi8(pairs));
  }
};

template <class Codes>
struct AffineRow {
  static void decode(const TableView& table, std::uint64_t row_number, const void* row, std::int64_t dim, float* x) {
    const auto* codes = static_cast<const std::uint8_t*>(row);
    const __m512 scale = _mm512_set1_ps(*table.scale_of(row_number));
    const __m512 bias = _mm512_set1_ps(table.scale_of(row_number)[1]);
    for_columns(dim, [&](std::int64_t c, __mmask16 mask) {
      const __m512 v = _mm512_cvtepi32_ps(Codes::read(codes + Codes::at(c), mask));
      _mm512_storeu_ps(x + c, _mm512_add_ps(_mm512_mul_ps(v, scale), bias));
    });
  }

  template <bool stochastic>
  static void encode(const TableView& table, std::uint64_t row_number, void* row, std::int64_t dim, const float* x,
                     RandomRow random) {
    auto* codes = static_cast<std::uint8_t*>(row);
    const __m512 infinity = _mm512_set1_ps(std::numeric_limits<float>::infinity());
    __m512 low = infinity, high = _mm512_sub_ps(_mm512_setzero_ps(), infinity);
    __mmask16 nan = 0;
    for_columns(dim, [&](std::int64_t c, __mmask16 mask) {
      const __m512 v = load(x + c, mask);
      const __mmask16 finite = _mm512_mask_cmp_ps_mask(mask, _mm512_abs_ps(v), infinity, _CMP_LT_OQ);
      nan |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
      low = _mm512_mask_min_ps(low, finite, low, v);
      high = _mm512_mask_max_ps(high, finite, high, v);
    });
    float lowest = _mm512_reduce_min_ps(low), highest = _mm512_reduce_max_ps(high);
    const AffineScale affine = affine_scale(lowest, highest, Codes::kLargest);
    *table.scale_of(row_number) = nan != 0 ? std::numeric_limits<float>::quiet_NaN() : affine.scale;  // no NaN code
    table.scale_of(row_number)[1] = affine.bias;
    const __m512 bias = _mm512_set1_ps(affine.bias), multiplier = _mm512_set1_ps(affine.multiplier);
    low = _mm512_set1_ps(lowest);
    high = _mm512_set1_ps(highest);
    for_columns(dim, [&](std::int64_t c, __mmask16 mask) {
      // Of two operands, max and min return the second where one is NaN: NaN becomes code 0.
      const __m512 clamped = _mm512_min_ps(_mm512_max_ps(load(x + c, mask), low), high);
      const __m512 y = _mm512_mul_ps(_mm512_sub_ps(clamped, bias), multiplier);
      const __m512 inside = _mm512_min_ps(_mm512_max_ps(y, _mm512_setzero_ps()), _mm512_set1_ps(Codes::kLargest));
      Codes::write(codes + Codes::at(c), mask, to_whole<stochastic>(inside, random_bits(random, c)));
    });
  }
};
using U8Row = AffineRow<CodeBytes>;
using U4Row = AffineRow<CodeNibbles>;

}  // namespace
}  // namespace octavo::avx512_kernels
