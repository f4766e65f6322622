// How the bags of a call are shared among threads: contiguous ranges of about equal bytes, table after table.
//
// In an anonymous namespace: compiled with several instruction sets, and the linker must never mix the copies.
#pragma once

#include "octavo/embedding.hpp"
#include "octavo/threading.hpp"

namespace octavo {
namespace {

// Cost of a table's bags before bag b: cache lines read and written.
struct BagCost {
  std::int64_t per_lookup, per_bag;
  std::int64_t before(const std::int64_t* offsets, std::int64_t b) const {
    return (offsets[b] - offsets[0]) * per_lookup + b * per_bag;
  }
};

inline BagCost bag_cost(const TableView& table) {
  return {1 + table.stored_bytes() / 64, 1 + table.dim * std::int64_t{sizeof(float)} / 64};
}

inline std::int64_t total_bag_cost(const TableView* tables, const BagIndices& in) {
  std::int64_t total = 0;
  for (std::int64_t t = 0; t < in.num_tables; ++t)
    total += bag_cost(tables[t]).before(in.offsets + t * in.batch, in.batch);
  return total;
}

// One thread for calls too small to share.
inline int threads_for_lines(std::int64_t lines) {
  constexpr std::int64_t kLinesPerThread = 2048;
  const std::int64_t wanted = lines / kLinesPerThread;
  const int most = threads();
  return wanted < 1 ? 1 : wanted < most ? static_cast<int>(wanted) : most;
}

inline int bag_threads(const TableView* tables, const BagIndices& in) {
  return threads_for_lines(total_bag_cost(tables, in));
}

// First bag b in [0, batch] with cost.before(b) >= limit, or batch.
inline std::int64_t first_bag_at(const BagCost& cost, const std::int64_t* offsets, std::int64_t batch,
                                 std::int64_t limit) {
  if (limit <= 0) return 0;
  if (limit > cost.before(offsets, batch)) return batch;
  std::int64_t low = 0, high = batch;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (cost.before(offsets, middle) < limit)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Calls visit(table, first output column of it, bags) for every table of which this thread has bags.
template <class Visit>
void for_each_bag_range(const TableView* tables, const BagIndices& in, int thread, int count, Visit&& visit) {
  const std::int64_t total = total_bag_cost(tables, in);
  const std::int64_t begin = total / count * thread, end = thread + 1 == count ? total : total / count * (thread + 1);
  std::int64_t before = 0, column = 0;
  for (std::int64_t t = 0; t < in.num_tables; ++t) {
    const BagCost cost = bag_cost(tables[t]);
    const std::int64_t* offsets = in.offsets + t * in.batch;
    const Range bags{first_bag_at(cost, offsets, in.batch, begin - before),
                     first_bag_at(cost, offsets, in.batch, end - before)};
    if (bags.begin < bags.end) visit(t, column, bags);
    before += cost.before(offsets, in.batch);
    column += tables[t].dim;
  }
}

// Without pooling each row read is a row written.
inline std::int64_t lookup_cost(const TableView& table) {
  const BagCost cost = bag_cost(table);
  return cost.per_lookup + cost.per_bag;
}

inline std::int64_t total_lookup_cost(const TableView* tables, const BagIndices& in) {
  std::int64_t total = 0;
  for (std::int64_t t = 0; t < in.num_tables; ++t)
    total += (in.first_value(t + 1, 0) - in.first_value(t, 0)) * lookup_cost(tables[t]);
  return total;
}

inline int lookup_threads(const TableView* tables, const BagIndices& in) {
  return threads_for_lines(total_lookup_cost(tables, in));
}

// Calls visit(table, lookups) for every table of which this thread has lookups.
template <class Visit>
void for_each_lookup_range(const TableView* tables, const BagIndices& in, int thread, int count, Visit&& visit) {
  const std::int64_t total = total_lookup_cost(tables, in);
  const std::int64_t begin = total / count * thread, end = thread + 1 == count ? total : total / count * (thread + 1);
  std::int64_t before = 0;
  for (std::int64_t t = 0; t < in.num_tables; ++t) {
    const std::int64_t first = in.first_value(t, 0), last = in.first_value(t + 1, 0), each = lookup_cost(tables[t]);
    const auto at = [&](std::int64_t limit) {
      const std::int64_t v = first + (limit - before + each - 1) / each;
      return limit <= before ? first : v < last ? v : last;
    };
    if (const Range mine{at(begin), at(end)}; mine.begin < mine.end) visit(t, mine);
    before += (last - first) * each;
  }
}

// The lookups of one thread: values[first_value .. last_value), from table `table` on.
struct BagSpan {
  std::int64_t table, first_value, last_value;
};

inline BagSpan bag_span(const TableView* tables, const BagIndices& in, int thread, int count) {
  BagSpan span{-1, 0, 0};
  for_each_bag_range(tables, in, thread, count, [&](std::int64_t t, std::int64_t, Range bags) {
    const std::int64_t* offsets = in.offsets + t * in.batch;
    if (span.table < 0) span = {t, offsets[bags.begin], 0};
    span.last_value = offsets[bags.end];
  });
  return span.table < 0 ? BagSpan{0, 0, 0} : span;
}

inline BagSpan lookup_span(const TableView* tables, const BagIndices& in, int thread, int count) {
  BagSpan span{-1, 0, 0};
  for_each_lookup_range(tables, in, thread, count, [&](std::int64_t t, Range mine) {
    if (span.table < 0) span = {t, mine.begin, 0};
    span.last_value = mine.end;
  });
  return span.table < 0 ? BagSpan{0, 0, 0} : span;
}

}  // namespace
}  // namespace octavo
