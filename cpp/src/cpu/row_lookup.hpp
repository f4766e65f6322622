// Rows decoded one by one, without pooling.
//
// In an anonymous namespace: compiled with several instruction sets, and the linker must never mix the copies.
#pragma once

#include "cpu/bag_columns.hpp"
#include "cpu/bag_partition.hpp"
#include "octavo/threading.hpp"

namespace octavo {
namespace {

// Columns from `first` on of lookups [mine.begin, mine.end) of table t. Returns how many lie outside the table.
template <class Format, int vectors>
std::int64_t copy_columns(const Format& format, const RowLookupArgs& args, std::int64_t t, Range mine,
                          BagPrefetch& prefetch, std::int64_t first, typename Format::Tail tail) {
  using Vector = typename Format::Vector;
  const Columns<Format, vectors, false> columns(format, args.tables[t], args.indices, first, tail);
  const MatrixView out = args.outs[t];
  std::int64_t outside = 0, at = (mine.begin - args.indices.first_value(t, 0)) * out.row_stride + first;
  BagAim aim;
  prefetch.get(aim);
  for (std::int64_t v = mine.begin; v < mine.end; ++v, at += out.row_stride) {
    if (__builtin_expect(v >= aim.until, 0)) {
      prefetch.advance(v);
      prefetch.get(aim);
    }
    Vector sum[vectors];
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) sum[i] = Vector{};
    float bias = 0;
    outside += columns.add(aim, v, v + 1, sum, bias);
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) sum[i] += bias;
    Format::template store<vectors>(out, at, sum, tail);
  }
  return outside;
}

// kMaxVectors vectors of columns from `first` on; the prefetch stays where it is, for the passes to come.
template <class Format>
[[gnu::noinline]] void copy_whole(const Format& format, const RowLookupArgs& args, std::int64_t t, Range mine,
                                  const BagPrefetch& prefetch, std::int64_t first) {
  BagPrefetch same_rows = prefetch;
  const auto whole = Format::tail(first + Format::lanes * kMaxVectors, first);
  copy_columns<Format, kMaxVectors>(format, args, t, mine, same_rows, first, whole);
}

template <class Format>
std::int64_t copy_table(const RowLookupArgs& args, std::int64_t t, Range mine, BagPrefetch& prefetch) {
  const TableView& table = args.tables[t];
  if (table.dim == 0) return 0;
  const Format format(table);
  const std::int64_t last = last_pass<Format>(table.dim);
  for (std::int64_t first = 0; first < last; first += Format::lanes * kMaxVectors)
    copy_whole(format, args, t, mine, prefetch, first);
  return with_vectors<Format::lanes>(table.dim, [&]<int vectors>() {
    return copy_columns<Format, vectors>(format, args, t, mine, prefetch, last, Format::tail(table.dim, last));
  });
}

template <class Formats>
Status look_up_all(const RowLookupArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  const BagIndices& in = args.indices;
  std::int64_t outside = 0;
  parallel_region(lookup_threads(args.tables, in), [&](int thread, int count) {
    const BagSpan span = lookup_span(args.tables, in, thread, count);
    BagPrefetch prefetch(args.tables, in, in.num_values, span.table, span.first_value, span.last_value);
    std::int64_t found = 0;
    for_each_lookup_range(args.tables, in, thread, count, [&](std::int64_t t, Range mine) {
      found += with_format<Formats>(args.tables[t].dtype,
                                    [&]<class Format>() { return copy_table<Format>(args, t, mine, prefetch); });
    });
    if (found != 0) __atomic_fetch_add(&outside, found, __ATOMIC_RELAXED);
  });
  return report_outside(args, outside);
}

}  // namespace
}  // namespace octavo
