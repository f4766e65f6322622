// Pooled rows of many tables: the sums of up to kMaxVectors vectors stay in registers while a bag's rows pass by.
//
// In an anonymous namespace: compiled with several instruction sets, and the linker must never mix the copies.
#pragma once

#include "cpu/bag_columns.hpp"
#include "cpu/bag_partition.hpp"
#include "octavo/threading.hpp"

namespace octavo {
namespace {

// One thread's bags of one table.
struct Work {
  const BagForwardArgs& args;
  std::int64_t table;
  std::int64_t column;  // of the output where the table starts
  Range bags;
  BagPrefetch& prefetch;
};

// Those columns of all the bags. Returns how many lookups lie outside the table.
template <class Format, int vectors, bool weighted>
std::int64_t pool_columns(const Format& format, const Work& work, BagPrefetch& prefetch, std::int64_t first,
                          typename Format::Tail tail) {
  using Vector = typename Format::Vector;
  const TableView& table = work.args.tables[work.table];
  const BagIndices& in = work.args.indices;
  const Columns<Format, vectors, weighted> columns(format, table, in, first, tail);
  const MatrixView out = work.args.out;
  const std::int64_t* offsets = in.offsets + work.table * in.batch;
  const bool mean = table.pooling == Pooling::mean;
  BagAim aim;
  prefetch.get(aim);
  std::int64_t v = offsets[work.bags.begin], outside_in_all = 0;
  std::int64_t at = work.bags.begin * out.row_stride + work.column + first;
  for (std::int64_t b = work.bags.begin; b < work.bags.end; ++b, at += out.row_stride) {
    const std::int64_t end = offsets[b + 1];
    const std::int64_t lookups = end - v;
    Vector sum[vectors];
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) sum[i] = Vector{};
    float bias = 0;
    std::int64_t outside = 0;
    while (true) {
      const std::int64_t stop = end < aim.until ? end : aim.until;
      outside += columns.add(aim, v, stop, sum, bias);
      v = stop;
      if (__builtin_expect(v == end, 1)) break;
      prefetch.advance(v);
      prefetch.get(aim);
    }
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) sum[i] += bias;
    if (const std::int64_t kept = lookups - outside; mean && kept > 1) {
      const Vector count = static_cast<float>(kept) - Vector{};
#pragma GCC unroll 8
      for (int i = 0; i < vectors; ++i) sum[i] /= count;
    }
    outside_in_all += outside;
    Format::template store<vectors>(out, at, sum, tail);
  }
  return outside_in_all;
}

// kMaxVectors vectors of columns from `first` on; the prefetch stays where it is, for the passes to come.
template <class Format, bool weighted>
[[gnu::noinline]] void pool_whole(const Format& format, const Work& work, std::int64_t first) {
  BagPrefetch same_rows = work.prefetch;
  const auto whole = Format::tail(first + Format::lanes * kMaxVectors, first);
  pool_columns<Format, kMaxVectors, weighted>(format, work, same_rows, first, whole);
}

// Columns go in passes of kMaxVectors vectors over all of the bags, each of which fetches its own part of the rows.
template <class Format, bool weighted>
std::int64_t pool_table(const Work& work) {
  const TableView& table = work.args.tables[work.table];
  if (table.dim == 0) return 0;
  const Format format(table);
  const std::int64_t last = last_pass<Format>(table.dim);
  for (std::int64_t first = 0; first < last; first += Format::lanes * kMaxVectors)
    pool_whole<Format, weighted>(format, work, first);
  return with_vectors<Format::lanes>(table.dim, [&]<int vectors>() {
    return pool_columns<Format, vectors, weighted>(format, work, work.prefetch, last, Format::tail(table.dim, last));
  });
}

template <class Formats>
Status pool_all(const BagForwardArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  const BagIndices& in = args.indices;
  std::int64_t outside = 0;
  parallel_region(bag_threads(args.tables, in), [&](int thread, int count) {
    const BagSpan span = bag_span(args.tables, in, thread, count);
    BagPrefetch prefetch(args.tables, in, in.num_tables * in.batch, span.table, span.first_value, span.last_value);
    std::int64_t found = 0;
    for_each_bag_range(args.tables, in, thread, count, [&](std::int64_t t, std::int64_t column, Range bags) {
      const Work work{args, t, column, bags, prefetch};
      found += with_format<Formats>(args.tables[t].dtype, [&]<class Format>() {
        return in.weights != nullptr ? pool_table<Format, true>(work) : pool_table<Format, false>(work);
      });
    });
    if (found != 0) __atomic_fetch_add(&outside, found, __ATOMIC_RELAXED);
  });
  return report_outside(args, outside);
}

}  // namespace
}  // namespace octavo
