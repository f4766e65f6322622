// Pooled rows of many tables: the sums of up to 128 columns stay in registers while a bag's rows pass by.
#pragma once

#include "cpu/avx512/bag_formats.hpp"
#include "cpu/bag_partition.hpp"
#include "cpu/bag_prefetch.hpp"
#include "octavo/threading.hpp"

namespace octavo::avx512_kernels {
namespace {

constexpr int kMaxVectors = 8;  // 128 columns a pass

[[gnu::always_inline]] inline __m256i to_bf16(__m512 x) {
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
  std::int64_t table;
  std::int64_t column;  // of the output where the table starts
  Range bags;
  BagPrefetch& prefetch;
};

// Adds the columns from `first` on of lookups [v, end) to the sums and their biases to `bias`; returns how many rows
// lie outside the table.
template <class Format, int vectors>
[[gnu::always_inline]] inline std::int64_t add_rows(const Format& format, const TableView& table, const BagIndices& in,
                                                    BagPrefetch& prefetch, std::int64_t v, std::int64_t end,
                                                    std::int64_t first, __mmask16 tail, __m512* sum, float& bias) {
  using Storage = typename Format::Storage;
  constexpr auto element = static_cast<std::int64_t>(sizeof(Storage));
  const Storage* rows = static_cast<const Storage*>(table.rows) + first;
  const std::int64_t* values = in.values;
  const float* weights = in.weights;
  const std::int64_t stride = table.row_stride;
  const auto num_rows = static_cast<std::uint64_t>(table.num_rows);
  std::int64_t outside = 0;
  while (v < end) {
    if (v >= prefetch.aim().until) prefetch.advance(v);
    const BagAim aim = prefetch.aim();
    const std::int64_t stop = end < aim.until ? end : aim.until;
    for (; v < stop; ++v) {
      const std::int64_t row = values[v];
      prefetch_row<16 * vectors * element>(aim, values[v + aim.ahead], first * element);
      if (__builtin_expect(static_cast<std::uint64_t>(row) >= num_rows, 0)) {
        ++outside;
        continue;
      }
      const float weight = weights != nullptr ? weights[v] : 1.0f;
      bias += format.bias(row, weight);
      format.template add<vectors>(sum, rows + row * stride, _mm512_set1_ps(format.scale(row, weight)), tail);
    }
  }
  return outside;
}

// Columns [first, first + 16 * (vectors - 1) + popcount(tail)) of bag b, which holds lookups [v, end).
template <class Format, int vectors>
[[gnu::always_inline]] inline std::int64_t pool(const Format& format, const Work& work, BagPrefetch& prefetch,
                                                std::int64_t b, std::int64_t v, std::int64_t end, std::int64_t first,
                                                __mmask16 tail) {
  const TableView& table = work.args.tables[work.table];
  __m512 sum[vectors];
#pragma GCC unroll 8
  for (int i = 0; i < vectors; ++i) sum[i] = _mm512_setzero_ps();
  float bias = 0;
  const std::int64_t outside =
      add_rows<Format, vectors>(format, table, work.args.indices, prefetch, v, end, first, tail, sum, bias);
#pragma GCC unroll 8
  for (int i = 0; i < vectors; ++i) sum[i] = _mm512_add_ps(sum[i], _mm512_set1_ps(bias));
  const std::int64_t kept = end - v - outside;
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
  return outside;
}

// Bags of a table whose last columns need `vectors` vectors; earlier columns go in passes of 128, each of which
// fetches its own part of the rows. Returns how many lookups lie outside the table.
template <class Format, int vectors>
std::int64_t pool_bags(const Work& work) {
  const TableView& table = work.args.tables[work.table];
  const BagIndices& in = work.args.indices;
  const Format format(table);
  const std::int64_t last = (table.dim - 1) / (16 * kMaxVectors) * (16 * kMaxVectors);
  const int left = static_cast<int>(table.dim - last) - 16 * (vectors - 1);
  const auto tail = static_cast<__mmask16>((1u << left) - 1);
  std::int64_t v = in.first_value(work.table, work.bags.begin), outside = 0;
  for (std::int64_t b = work.bags.begin; b < work.bags.end; ++b) {
    const std::int64_t end = in.first_value(work.table, b + 1);
    for (std::int64_t first = 0; first < last; first += 16 * kMaxVectors) {
      BagPrefetch same_rows = work.prefetch;
      pool<Format, kMaxVectors>(format, work, same_rows, b, v, end, first, 0xffff);
    }
    outside += pool<Format, vectors>(format, work, work.prefetch, b, v, end, last, tail);
    v = end;
  }
  return outside;
}

template <class Format>
std::int64_t pool_table(const Work& work) {
  static constexpr std::int64_t (*kByVectors[])(const Work&) = {
      pool_bags<Format, 1>, pool_bags<Format, 2>, pool_bags<Format, 3>, pool_bags<Format, 4>,
      pool_bags<Format, 5>, pool_bags<Format, 6>, pool_bags<Format, 7>, pool_bags<Format, 8>};
  const std::int64_t dim = work.args.tables[work.table].dim;
  return dim > 0 ? kByVectors[(dim - 1) % (16 * kMaxVectors) / 16](work) : 0;
}

// `E4m3`: how this kernel decodes E4M3.
template <class E4m3>
Status pool_all(const BagForwardArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  const BagIndices& in = args.indices;
  std::int64_t outside = 0;
  parallel_region(bag_threads(args.tables, in), [&](int thread, int count) {
    const BagSpan span = bag_span(args.tables, in, thread, count);
    BagPrefetch prefetch(args.tables, in, span.table, span.first_value, span.last_value);
    std::int64_t found = 0;
    for_each_bag_range(args.tables, in, thread, count, [&](std::int64_t t, std::int64_t column, Range bags) {
      const Work work{args, t, column, bags, prefetch};
      switch (args.tables[t].dtype) {
        case DType::f32: found += pool_table<F32>(work); break;
        case DType::bf16: found += pool_table<Bf16>(work); break;
        case DType::e4m3: found += pool_table<E4m3>(work); break;
        default: found += pool_table<Int8>(work);
      }
    });
    if (found != 0) __atomic_fetch_add(&outside, found, __ATOMIC_RELAXED);
  });
  return report_outside(args, outside);
}

}  // namespace
}  // namespace octavo::avx512_kernels
