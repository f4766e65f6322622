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

// Columns [first, first + 16 * (vectors - 1) + popcount(tail)) of a table's rows, fixed while its bags pass by.
// `weighted`: lookups have weights.
template <class Format, int vectors, bool weighted>
struct Columns {
  using Storage = typename Format::Storage;
  const Format& format;
  const Storage* rows;
  const std::int64_t* values;
  const float* weights;
  std::int64_t stride, skipped_bytes;
  std::uint64_t num_rows;
  __mmask16 tail;

  Columns(const Format& f, const TableView& table, const BagIndices& in, std::int64_t first, __mmask16 t)
      : format(f),
        rows(static_cast<const Storage*>(table.rows) + Format::at(first)),
        values(in.values),
        weights(in.weights),
        stride(table.row_stride),
        skipped_bytes(Format::at(first) * static_cast<std::int64_t>(sizeof(Storage))),
        num_rows(static_cast<std::uint64_t>(table.num_rows)),
        tail(t) {}

  // Adds lookups [v, end), all before aim.until, to the sums and their biases to `bias`; returns how many rows lie
  // outside the table.
  [[gnu::always_inline]] inline std::int64_t add(const BagAim& aim, std::int64_t v, std::int64_t end, __m512* sum,
                                                 float& bias) const {
    std::int64_t outside = 0;
    for (; v < end; ++v) {
      const std::int64_t row = values[v];
      prefetch_row<Format::vector_bytes * vectors>(aim, values[v + aim.ahead], skipped_bytes);
      if (__builtin_expect(static_cast<std::uint64_t>(row) >= num_rows, 0)) {
        ++outside;
        continue;
      }
      const float weight = weighted ? weights[v] : 1.0f;
      bias += format.bias(row, weight);
      format.template add<vectors>(sum, rows + row * stride, _mm512_set1_ps(format.scale(row, weight)), tail);
    }
    return outside;
  }
};

template <int vectors>
[[gnu::always_inline]] inline void store(const MatrixView& out, std::int64_t at, const __m512* sum, __mmask16 tail) {
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

// Those columns of all the bags. Returns how many lookups lie outside the table.
template <class Format, int vectors, bool weighted>
std::int64_t pool_columns(const Format& format, const Work& work, BagPrefetch& prefetch, std::int64_t first,
                          __mmask16 tail) {
  const TableView& table = work.args.tables[work.table];
  const BagIndices& in = work.args.indices;
  const Columns<Format, vectors, weighted> columns(format, table, in, first, tail);
  const MatrixView out = work.args.out;
  const std::int64_t* offsets = in.offsets + work.table * in.batch;
  const bool mean = table.pooling == Pooling::mean;
  BagAim aim = prefetch.aim();
  std::int64_t v = offsets[work.bags.begin], outside_in_all = 0;
  std::int64_t at = work.bags.begin * out.row_stride + work.column + first;
  for (std::int64_t b = work.bags.begin; b < work.bags.end; ++b, at += out.row_stride) {
    const std::int64_t end = offsets[b + 1];
    const std::int64_t lookups = end - v;
    __m512 sum[vectors];
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) sum[i] = _mm512_setzero_ps();
    float bias = 0;
    std::int64_t outside = 0;
    while (true) {
      const std::int64_t stop = end < aim.until ? end : aim.until;
      outside += columns.add(aim, v, stop, sum, bias);
      v = stop;
      if (__builtin_expect(v == end, 1)) break;
      prefetch.advance(v);
      aim = prefetch.aim();
    }
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) sum[i] = _mm512_add_ps(sum[i], _mm512_set1_ps(bias));
    if (const std::int64_t kept = lookups - outside; mean && kept > 1) {
      const __m512 count = _mm512_set1_ps(static_cast<float>(kept));
#pragma GCC unroll 8
      for (int i = 0; i < vectors; ++i) sum[i] = _mm512_div_ps(sum[i], count);
    }
    outside_in_all += outside;
    store<vectors>(out, at, sum, tail);
  }
  return outside_in_all;
}

// Bags of a table whose last columns need `vectors` vectors; earlier columns go in passes of 128 over all of the bags,
// each of which fetches its own part of the rows.
template <class Format, int vectors, bool weighted>
std::int64_t pool_bags(const Work& work) {
  const std::int64_t dim = work.args.tables[work.table].dim;
  const Format format(work.args.tables[work.table]);
  const std::int64_t last = (dim - 1) / (16 * kMaxVectors) * (16 * kMaxVectors);
  const int left = static_cast<int>(dim - last) - 16 * (vectors - 1);
  for (std::int64_t first = 0; first < last; first += 16 * kMaxVectors) {
    BagPrefetch same_rows = work.prefetch;
    pool_columns<Format, kMaxVectors, weighted>(format, work, same_rows, first, 0xffff);
  }
  return pool_columns<Format, vectors, weighted>(format, work, work.prefetch, last,
                                                 static_cast<__mmask16>((1u << left) - 1));
}

template <class Format, bool weighted>
std::int64_t pool_width(const Work& work) {
  static constexpr std::int64_t (*kByVectors[])(const Work&) = {
      pool_bags<Format, 1, weighted>, pool_bags<Format, 2, weighted>, pool_bags<Format, 3, weighted>,
      pool_bags<Format, 4, weighted>, pool_bags<Format, 5, weighted>, pool_bags<Format, 6, weighted>,
      pool_bags<Format, 7, weighted>, pool_bags<Format, 8, weighted>};
  const std::int64_t dim = work.args.tables[work.table].dim;
  return dim > 0 ? kByVectors[(dim - 1) % (16 * kMaxVectors) / 16](work) : 0;
}

template <class Format>
std::int64_t pool_table(const Work& work) {
  return work.args.indices.weights != nullptr ? pool_width<Format, true>(work) : pool_width<Format, false>(work);
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
        case DType::f16: found += pool_table<SixteenBit<F16>>(work); break;
        case DType::bf16: found += pool_table<SixteenBit<Bf16>>(work); break;
        case DType::e4m3: found += pool_table<E4m3>(work); break;
        case DType::u8: found += pool_table<Int8>(work); break;
        default: found += pool_table<Int4>(work);
      }
    });
    if (found != 0) __atomic_fetch_add(&outside, found, __ATOMIC_RELAXED);
  });
  return report_outside(args, outside);
}

}  // namespace
}  // namespace octavo::avx512_kernels
