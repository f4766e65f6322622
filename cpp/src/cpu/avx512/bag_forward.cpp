// Pooled rows of many tables: the sums of up to 128 columns stay in registers while a bag's rows pass by.
#include <immintrin.h>

#include "cpu/bag_partition.hpp"
#include "cpu/bag_prefetch.hpp"
#include "octavo/embedding.hpp"
#include "octavo/threading.hpp"

namespace octavo::avx512_kernels {
namespace {

constexpr int kMaxVectors = 8;  // 128 columns a pass

// A format adds weight * row to the sums: `scale_of` folds the row's scale into the weight, `bias_of` gives what is
// added to every column, `add` does the columns. `tail` masks the last vector.
struct F32 {
  using Storage = float;
  static float scale_of(const TableView&, std::int64_t, float weight) { return weight; }
  static float bias_of(const TableView&, std::int64_t, float) { return 0; }
  template <int vectors>
  [[gnu::always_inline]] static void add(__m512* sum, const float* x, __m512 scale, __mmask16 tail) {
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) {
      const __m512 v = i + 1 < vectors ? _mm512_loadu_ps(x + 16 * i) : _mm512_maskz_loadu_ps(tail, x + 16 * i);
      sum[i] = _mm512_fmadd_ps(v, scale, sum[i]);
    }
  }
};

struct Bf16 {
  using Storage = std::uint16_t;
  static float scale_of(const TableView&, std::int64_t, float weight) { return weight; }
  static float bias_of(const TableView&, std::int64_t, float) { return 0; }
  template <int vectors>
  [[gnu::always_inline]] static void add(__m512* sum, const std::uint16_t* x, __m512 scale, __mmask16 tail) {
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) {
      const __m256i bits = i + 1 < vectors ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 16 * i))
                                           : _mm256_maskz_loadu_epi16(tail, x + 16 * i);
      const __m512 v = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
      sum[i] = _mm512_fmadd_ps(v, scale, sum[i]);
    }
  }
};

// Through FP16: its exponent field takes E4M3's, 8 too small, so 2^8 goes into the scale. Exact for all finite codes.
struct E4m3 {
  using Storage = std::uint8_t;
  static float scale_of(const TableView& table, std::int64_t row, float weight) {
    return table.scale[row] * weight * 256.0f;
  }
  static float bias_of(const TableView&, std::int64_t, float) { return 0; }

  [[gnu::always_inline]] static __m512 decode(__m128i codes) {
    const __m256i words = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
    return _mm512_cvtph_ps(_mm256_and_si256(words, _mm256_set1_epi16(static_cast<short>(0xbfff))));
  }
  [[gnu::always_inline]] static __mmask32 nans(__m256i codes) {
    const __m256i magnitude = _mm256_set1_epi8(0x7f);
    return _mm256_cmpeq_epi8_mask(_mm256_and_si256(codes, magnitude), magnitude);
  }

  // Loads stay inside the row: a wider one would touch the next cache line, which nobody prefetched.
  template <int vectors>
  [[gnu::always_inline]] static void add(__m512* sum, const std::uint8_t* x, __m512 scale, __mmask16 tail) {
    constexpr int pairs = vectors / 2;
    const __m512i clear = _mm512_set1_epi16(static_cast<short>(0xbfff));
    __mmask32 found = 0;
#pragma GCC unroll 4
    for (int i = 0; i < pairs; ++i) {
      const bool last = 2 * i + 2 == vectors;
      const __mmask32 mask = last ? __mmask32{0xffff} | __mmask32{tail} << 16 : ~__mmask32{0};
      const __m256i codes = last ? _mm256_maskz_loadu_epi8(mask, x + 32 * i)
                                 : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 32 * i));
      found |= nans(codes);
      const __m512i words = _mm512_and_si512(_mm512_slli_epi16(_mm512_cvtepi8_epi16(codes), 7), clear);
      const __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(words));
      const __m512 high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(words, 1));
      sum[2 * i] = _mm512_fmadd_ps(low, scale, sum[2 * i]);
      sum[2 * i + 1] = _mm512_fmadd_ps(high, scale, sum[2 * i + 1]);
    }
    if constexpr (vectors % 2 == 1) {
      constexpr int i = vectors - 1;
      const __m128i codes = _mm_maskz_loadu_epi8(tail, x + 16 * i);
      found |= nans(_mm256_zextsi128_si256(codes));
      sum[i] = _mm512_fmadd_ps(decode(codes), scale, sum[i]);
    }
    if (__builtin_expect(found != 0, 0)) poison<vectors>(sum, x, tail);
  }

  // Inline although it is cold: a call would keep the sums in memory.
  template <int vectors>
  [[gnu::always_inline]] static void poison(__m512* sum, const std::uint8_t* x, __mmask16 tail) {
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) {
      const __m128i codes = _mm_maskz_loadu_epi8(i + 1 < vectors ? 0xffff : tail, x + 16 * i);
      const __mmask16 nan = static_cast<__mmask16>(nans(_mm256_zextsi128_si256(codes)));
      sum[i] = _mm512_mask_mov_ps(sum[i], nan, _mm512_set1_ps(__builtin_nanf("")));
    }
  }
};

struct Int8 {
  using Storage = std::uint8_t;
  static float scale_of(const TableView& table, std::int64_t row, float weight) {
    return table.scale[2 * row] * weight;
  }
  static float bias_of(const TableView& table, std::int64_t row, float weight) {
    return table.scale[2 * row + 1] * weight;
  }
  template <int vectors>
  [[gnu::always_inline]] static void add(__m512* sum, const std::uint8_t* x, __m512 scale, __mmask16 tail) {
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) {
      const __m128i codes = i + 1 < vectors ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 16 * i))
                                            : _mm_maskz_loadu_epi8(tail, x + 16 * i);
      sum[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes)), scale, sum[i]);
    }
  }
};

__m256i to_bf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}

// One thread's bags of one table.
struct Work {
  const BagForwardArgs& args;
  const TableView& table;
  std::int64_t column;  // of the output where the table starts
  Range bags;
  BagPrefetch& prefetch;
};

// Columns [first, first + 16 * (vectors - 1) + popcount(tail)) of one bag.
template <class Format, int vectors>
[[gnu::always_inline]] inline void pool(const Work& work, std::int64_t b, std::int64_t first, __mmask16 tail) {
  const BagIndices& in = work.args.indices;
  const TableView& table = work.table;
  const std::int64_t* offsets = in.offsets + (&table - work.args.tables) * in.batch + b;
  const auto* rows = static_cast<const typename Format::Storage*>(table.rows) + first;
  const bool leads = first == 0;  // the first pass over the rows prefetches for all
  __m512 sum[vectors];
#pragma GCC unroll 8
  for (int i = 0; i < vectors; ++i) sum[i] = _mm512_setzero_ps();
  float bias = 0;
  std::int64_t kept = 0;
  for (std::int64_t v = offsets[0]; v < offsets[1]; ++v) {
    const std::int64_t row = in.values[v];
    if (leads) work.prefetch.step();
    if (__builtin_expect(static_cast<std::uint64_t>(row) >= static_cast<std::uint64_t>(table.num_rows), 0)) continue;
    const float weight = in.weights != nullptr ? in.weights[v] : 1.0f;
    bias += Format::bias_of(table, row, weight);
    Format::template add<vectors>(sum, rows + row * table.row_stride,
                                  _mm512_set1_ps(Format::scale_of(table, row, weight)), tail);
    ++kept;
  }
#pragma GCC unroll 8
  for (int i = 0; i < vectors; ++i) sum[i] = _mm512_add_ps(sum[i], _mm512_set1_ps(bias));
  if (table.pooling == Pooling::mean && kept > 1) {
    const __m512 count = _mm512_set1_ps(static_cast<float>(kept));
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) sum[i] = _mm512_div_ps(sum[i], count);
  }
  const std::int64_t at = b * work.args.out.row_stride + work.column + first;
  if (work.args.out.dtype == DType::f32) {
    float* out = static_cast<float*>(work.args.out.data) + at;
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) _mm512_mask_storeu_ps(out + 16 * i, i + 1 < vectors ? 0xffff : tail, sum[i]);
  } else {
    auto* out = static_cast<std::uint16_t*>(work.args.out.data) + at;
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i)
      _mm256_mask_storeu_epi16(out + 16 * i, i + 1 < vectors ? 0xffff : tail, to_bf16(sum[i]));
  }
}

// Bags of a table whose last columns need `vectors` vectors; earlier columns go in passes of 128.
template <class Format, int vectors>
void pool_bags(const Work& work) {
  const std::int64_t dim = work.table.dim, last = (dim - 1) / (16 * kMaxVectors) * (16 * kMaxVectors);
  const int left = static_cast<int>(dim - last) - 16 * (vectors - 1);
  const auto tail = static_cast<__mmask16>((1u << left) - 1);
  for (std::int64_t b = work.bags.begin; b < work.bags.end; ++b) {
    for (std::int64_t first = 0; first < last; first += 16 * kMaxVectors)
      pool<Format, kMaxVectors>(work, b, first, 0xffff);
    pool<Format, vectors>(work, b, last, tail);
  }
}

template <class Format>
void pool_table(const Work& work) {
  static constexpr void (*kByVectors[])(const Work&) = {
      pool_bags<Format, 1>, pool_bags<Format, 2>, pool_bags<Format, 3>, pool_bags<Format, 4>,
      pool_bags<Format, 5>, pool_bags<Format, 6>, pool_bags<Format, 7>, pool_bags<Format, 8>};
  if (work.table.dim > 0) kByVectors[(work.table.dim - 1) % (16 * kMaxVectors) / 16](work);
}

}  // namespace

Status bag_forward(const BagForwardArgs& args) {
  std::int64_t skipped;
  if (Status status = validate(args, skipped); !status.ok()) return status;
  if (args.out_of_bounds != nullptr) *args.out_of_bounds = skipped;
  const BagIndices& in = args.indices;
  parallel_region(bag_threads(args.tables, in), [&](int thread, int count) {
    const BagSpan span = bag_span(args.tables, in, thread, count);
    BagPrefetch prefetch(args.tables, in, span.table, span.first_value, span.last_value);
    for_each_bag_range(args.tables, in, thread, count, [&](std::int64_t t, std::int64_t column, Range bags) {
      const Work work{args, args.tables[t], column, bags, prefetch};
      switch (work.table.dtype) {
        case DType::f32: pool_table<F32>(work); break;
        case DType::bf16: pool_table<Bf16>(work); break;
        case DType::e4m3: pool_table<E4m3>(work); break;
        default: pool_table<Int8>(work);
      }
    });
  });
  return {};
}

}  // namespace octavo::avx512_kernels
