// Row formats of embedding tables in GNU vector extensions (cpu/bag_columns.hpp has the terms). Included by files that
// are compiled once per instruction set.
//
// Where a row's columns do not fill the last vector, it holds the row's last kLanes columns, some of which the vector
// before it has as well: both come to the same bits. Rows narrower than a vector are copied into one.
#pragma once

#include "cpu/bag_columns.hpp"
#include "cpu/generic/linear_vector.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

// Copies `count` < kLanes elements without a call, which would put all sums on the stack.
template <class Element>
[[gnu::always_inline]] inline void copy_few(Element* to, const Element* from, std::int64_t count) {
#pragma GCC unroll 4
  for (int step = kLanes / 2; step > 0; step /= 2) {
    if ((count & step) == 0) continue;
    std::memcpy(to, from, static_cast<std::size_t>(step) * sizeof(Element));
    to += step;
    from += step;
  }
}

template <class Element>
struct Elements {
  using Storage = Element;
  using Vector = Vec;
  struct Tail {
    std::int64_t at;       // its first column, from the pass's first: negative where it starts before the pass
    std::int64_t columns;  // kLanes, or fewer where the row has no more
  };
  static constexpr int lanes = kLanes;
  static constexpr std::int64_t vector_bytes = kLanes * sizeof(Element);
  static std::int64_t at(std::int64_t column) { return column; }
  static Tail tail(std::int64_t dim, std::int64_t first) {
    if (dim < kLanes) return {0, dim};
    return {dim - kLanes - first, kLanes};
  }

  template <int vectors>
  [[gnu::always_inline]] static inline void store(const MatrixView& out, std::int64_t at, const Vec* sum, Tail tail) {
    if (out.dtype == DType::f32)
      store_columns<vectors>(static_cast<float*>(out.data) + at, sum, tail);
    else
      store_columns<vectors>(static_cast<std::uint16_t*>(out.data) + at, sum, tail);
  }

 private:
  template <int vectors, class Out>
  [[gnu::always_inline]] static inline void store_columns(Out* y, const Vec* sum, Tail tail) {
    if (vectors == 1 && tail.columns < kLanes) {
      alignas(kVectorBytes) Out part[kLanes];
      OCTAVO_ISA_NAMESPACE::store(part, sum[0]);
      return copy_few(y, part, tail.columns);
    }
#pragma GCC unroll 8
    for (int i = 0; i + 1 < vectors; ++i) OCTAVO_ISA_NAMESPACE::store(y + kLanes * i, sum[i]);
    OCTAVO_ISA_NAMESPACE::store(y + tail.at, sum[vectors - 1]);
  }
};

// A row whose elements `Codec` decodes kLanes at a time: decode(x) those from x on, last(x, at) those from column `at`
// on, few(x, count) fewer of them.
template <class Codec>
struct Coded : Codec {
  using Codec::Codec;
  using typename Codec::Storage;
  using typename Codec::Tail;

  template <int vectors>
  [[gnu::always_inline]] inline void add(Vec* sum, const Storage* x, Vec scale, Tail tail) const {
    if (vectors == 1 && tail.columns < kLanes) {
      sum[0] = multiply_add(Codec::few(x, tail.columns), scale, sum[0]);
      return;
    }
#pragma GCC unroll 8
    for (int i = 0; i + 1 < vectors; ++i)
      sum[i] = multiply_add(Codec::decode(x + Codec::at(kLanes * i)), scale, sum[i]);
    sum[vectors - 1] = multiply_add(Codec::last(x, tail.at), scale, sum[vectors - 1]);
  }
};

// Elements of whole bytes: `Element::decode` is all that a type has of its own.
template <class Type>
struct Bytes : Type {
  using Type::Type;
  using typename Type::Storage;
  [[gnu::always_inline]] static inline Vec last(const Storage* x, std::int64_t at) { return Type::decode(x + at); }
  [[gnu::always_inline]] static inline Vec few(const Storage* x, std::int64_t count) {
    alignas(kVectorBytes) Storage part[kLanes] = {};
    copy_few(part, x, count);
    return Type::decode(part);
  }
};

template <class Element>
struct Unscaled : Elements<Element> {
  explicit Unscaled(const TableView&) {}
  static float scale(std::int64_t, float weight) { return weight; }
  static float bias(std::int64_t, float) { return 0; }
};

struct F32 : Unscaled<float> {
  using Unscaled::Unscaled;
  [[gnu::always_inline]] static inline Vec decode(const float* x) { return load(x); }
};

struct Bf16 : Unscaled<std::uint16_t> {
  using Unscaled::Unscaled;
  [[gnu::always_inline]] static inline Vec decode(const std::uint16_t* x) { return load(x); }
};

struct F16 : Unscaled<std::uint16_t> {
  using Unscaled::Unscaled;
  [[gnu::always_inline]] static inline Vec decode(const std::uint16_t* x) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
#else  // decode_f16
    const Words bits = widen(x), magnitude = bits & 0x7fffu;
    const Vec subnormal = __builtin_convertvector(reinterpret_cast<Ints>(magnitude), Vec) * 0x1p-24f;
    const Words finite = (magnitude << 13) + (112u << 23), all_ones = (magnitude << 13) + (224u << 23);
    const Words normal = magnitude < 0x7c00u ? finite : all_ones;
    const Words value = magnitude < 0x400u ? reinterpret_cast<Words>(subnormal) : normal;
    return reinterpret_cast<Vec>(value | (bits & 0x8000u) << 16);
#endif
  }
};

#if defined(__F16C__)

// FP16's exponent field takes E4M3's, 8 too small, so 2^8 goes into the scale. Exact for all finite codes, and immune
// to flushing of FP32 subnormals.
struct E4m3ViaF16 : Elements<std::uint8_t> {
  RowScales scales;
  explicit E4m3ViaF16(const TableView& table) : scales(table) {}
  float scale(std::int64_t row, float weight) const { return scales(row) * weight * 256.0f; }
  static float bias(std::int64_t, float) { return 0; }

  [[gnu::always_inline]] static inline __m256i to_f16(__m128i codes) {
    const __m256i words = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);  // sign, sign, exponent, fraction
    const __m256i second = _mm256_set1_epi16(0x4000), signs = _mm256_set1_epi16(static_cast<short>(0xc000));
    const __m256i largest = _mm256_set1_epi16(static_cast<short>(0xff80));
    const __m256i nan = _mm256_cmpeq_epi16(_mm256_or_si256(words, signs), largest);
    return _mm256_or_si256(_mm256_andnot_si256(second, words), nan);
  }

#if defined(__AVX512F__)
  [[gnu::always_inline]] static inline Vec decode(const std::uint8_t* x) {
    return _mm512_cvtph_ps(to_f16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
  }
};
using E4m3 = Coded<Bytes<E4m3ViaF16>>;
#else
  [[gnu::always_inline]] static inline Vec decode(const std::uint8_t* x) {
    return _mm256_cvtph_ps(_mm256_castsi256_si128(to_f16(_mm_loadu_si64(x))));
  }
};

// Sixteen codes at a time.
struct E4m3 : Coded<Bytes<E4m3ViaF16>> {
  using Coded::Coded;
  template <int vectors>
  [[gnu::always_inline]] inline void add(Vec* sum, const std::uint8_t* x, Vec scale, Tail tail) const {
#pragma GCC unroll 4
    for (int i = 0; i + 1 < vectors; i += 2) {
      const __m128i codes = i + 2 < vectors
                                ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 8 * i))
                                : _mm_unpacklo_epi64(_mm_loadu_si64(x + 8 * i), _mm_loadu_si64(x + tail.at));
      const __m256i halves = to_f16(codes);
      sum[i] = multiply_add(_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), scale, sum[i]);
      sum[i + 1] = multiply_add(_mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)), scale, sum[i + 1]);
    }
    if constexpr (vectors % 2 == 1) Coded::add<1>(sum + vectors - 1, x, scale, tail);
  }
};
#endif

#else

struct E4m3ViaF32 : Elements<std::uint8_t> {
  RowScales scales;
  explicit E4m3ViaF32(const TableView& table) : scales(table) {}
  float scale(std::int64_t row, float weight) const { return scales(row) * weight; }
  static float bias(std::int64_t, float) { return 0; }

  [[gnu::always_inline]] static inline Vec decode(const std::uint8_t* x) {  // decode_e4m3
    const Words codes = widen(x), magnitude = codes & 0x7fu;
    const Vec subnormal = __builtin_convertvector(reinterpret_cast<Ints>(magnitude), Vec) * 0x1p-9f;
    const Words normal = (magnitude << 20) + (120u << 23);
    const Words finite = magnitude < 8u ? reinterpret_cast<Words>(subnormal) : normal;
    const Words value = magnitude == 0x7fu ? Words{} + 0x7fc00000u : finite;
    return reinterpret_cast<Vec>(value | (codes & 0x80u) << 24);
  }
};
using E4m3 = Coded<Bytes<E4m3ViaF32>>;
#endif

struct Int8 : Elements<std::uint8_t>, RowAffine {
  using RowAffine::RowAffine;
  [[gnu::always_inline]] static inline Vec decode(const std::uint8_t* x) {
    return __builtin_convertvector(reinterpret_cast<Ints>(widen(x)), Vec);
  }
};

// kLanes columns are kLanes / 2 bytes: one or two words of eight nibbles, or half of one.
struct Int4 : Elements<std::uint8_t>, RowAffine {
  using RowAffine::RowAffine;
  static constexpr std::int64_t bytes = kLanes / 2, vector_bytes = bytes;
  static std::int64_t at(std::int64_t column) { return column / 2; }

  [[gnu::always_inline]] static inline std::uint64_t word(const std::uint8_t* x) {
    std::uint64_t word = 0;
    std::memcpy(&word, x, bytes);
    return word;
  }

  [[gnu::always_inline]] static inline Vec decode_word(std::uint64_t word) {
    Words shifts;
    Ints lane;
    for (int i = 0; i < kLanes; ++i) shifts[i] = static_cast<std::uint32_t>(i % 8 * 4), lane[i] = i;
    const Words low = Words{} + static_cast<std::uint32_t>(word);
    if constexpr (kLanes == 4) {  // SSE2 shifts all lanes alike
      Vec unit;
      for (int i = 0; i < kLanes; ++i) unit[i] = 1.0f / static_cast<float>(1 << 4 * i);
      const Words nibbles = low & 15u << shifts;
      return __builtin_convertvector(reinterpret_cast<Ints>(nibbles), Vec) * unit;
    }
    const Words words = kLanes > 8 ? (lane < 8 ? low : Words{} + static_cast<std::uint32_t>(word >> 32)) : low;
    return __builtin_convertvector(reinterpret_cast<Ints>(words >> shifts & 15u), Vec);
  }
  [[gnu::always_inline]] static inline Vec decode(const std::uint8_t* x) { return decode_word(word(x)); }

  // From an odd column on: its byte's low nibble belongs to the column before it.
  [[gnu::always_inline]] static inline Vec last(const std::uint8_t* x, std::int64_t at) {
    x += at >> 1;
    if (at % 2 == 0) return decode(x);
    return decode_word(word(x) >> 4 | std::uint64_t{x[bytes]} << (8 * bytes - 4));
  }

  [[gnu::always_inline]] static inline Vec few(const std::uint8_t* x, std::int64_t count) {
    std::uint8_t part[kLanes] = {};
    copy_few(part, x, (count + 1) / 2);
    return decode(part);
  }
};

struct Formats {
  using F32 = Coded<Bytes<OCTAVO_ISA_NAMESPACE::F32>>;
  using F16 = Coded<Bytes<OCTAVO_ISA_NAMESPACE::F16>>;
  using Bf16 = Coded<Bytes<OCTAVO_ISA_NAMESPACE::Bf16>>;
  using E4m3 = OCTAVO_ISA_NAMESPACE::E4m3;
  using Int8 = Coded<Bytes<OCTAVO_ISA_NAMESPACE::Int8>>;
  using Int4 = Coded<OCTAVO_ISA_NAMESPACE::Int4>;
};

}  // namespace
}  // namespace octavo::OCTAVO_ISA_NAMESPACE
