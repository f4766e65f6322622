// The lookups of a table grouped by row, so that a backward kernel updates every touched row once, in a fixed order.
//
// In an anonymous namespace: compiled with several instruction sets, and the linker must never mix the copies.
#pragma once

#include <bit>
#include <cstdint>

#include "octavo/embedding.hpp"
#include "octavo/memory.hpp"
#include "octavo/threading.hpp"

namespace octavo {
namespace {

// Scratch slots of a backward: 0 and 1 keys, 5 a kernel's rows, 7 the shares.
enum BagScratch { kKeys = 0, kOtherKeys, kLookups, kInverseCounts, kRuns, kRowScratch, kGradients, kShares };

// Part `part` of `parts` of the rows of one table: blocks of 16 rows (a cache line of row-wise state) dealt by hash.
struct BagShare {
  std::int64_t table, column;  // column: first output column of the table
  std::uint64_t part, parts;
  std::int64_t cost;

  bool holds(std::uint64_t row) const {
    return parts == 1 || (((row >> 4) * 0x9e3779b97f4a7c15ull >> 32) * parts >> 32) == part;
  }
};

struct BagShares {
  BagShare* begin;
  std::int64_t size;
};

inline int backward_threads(const BagIndices& in) {
  constexpr std::int64_t kLookupsPerThread = 512;
  const std::int64_t wanted = in.num_values / kLookupsPerThread;
  const int most = threads();
  return wanted < 1 ? 1 : wanted < most ? static_cast<int>(wanted) : most;
}

// Tables cut into shares of about a quarter of a thread's fair part, the largest first. Every share of a table reads
// all its lookups and sorts its own, so a table has no more of them than there are threads.
inline BagShares share_tables(const TableView* tables, const BagIndices& in, int count) {
  const auto cost = [&](std::int64_t t) {
    const std::int64_t* offsets = in.offsets + t * in.batch;
    return (offsets[in.batch] - offsets[0]) * (8 + tables[t].dim / 4);
  };
  std::int64_t total = 0;
  for (std::int64_t t = 0; t < in.num_tables; ++t) total += cost(t);
  const std::int64_t most = total / (4 * count) + 1;
  const auto room = static_cast<std::size_t>(in.num_tables + 5 * count);
  auto* shares = static_cast<BagShare*>(scratch(kShares, room * sizeof(BagShare)));
  std::int64_t size = 0, column = 0;
  for (std::int64_t t = 0; t < in.num_tables; ++t) {
    const std::int64_t whole = cost(t), wanted = (whole + most - 1) / most;
    const std::int64_t parts = wanted < count ? wanted : count;
    for (std::int64_t p = 0; p < parts; ++p) {
      const BagShare share{t, column, static_cast<std::uint64_t>(p), static_cast<std::uint64_t>(parts), whole / parts};
      std::int64_t at = size++;
      for (; at > 0 && shares[at - 1].cost < share.cost; --at) shares[at] = shares[at - 1];
      shares[at] = share;
    }
    column += tables[t].dim;
  }
  return {shares, size};
}

// Calls run(share) for every share of the call. Which thread runs which is left to chance: no result depends on it.
template <class RunShare>
void for_each_share(const BagBackwardArgs& args, RunShare&& run) {
  const int count = backward_threads(args.indices);
  const BagShares shares = share_tables(args.tables, args.indices, count);
  std::int64_t next = 0;
  parallel_region(count, [&](int, int) {
    for (std::int64_t s; (s = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < shares.size;) run(shares.begin[s]);
  });
}

struct Run {
  std::uint32_t row, begin;  // begin: of its lookups in `payload`; they end where the next run's begin
};

struct Lookup {
  float coefficient;  // weight / count
  std::int32_t bag;
};

// The rows of one share in ascending order, each with its lookups in the order of `values`.
struct RowRuns {
  const Run* runs;  // [size + 1]
  std::int64_t size;
  const std::uint32_t* payload;  // the bag, or with `lookups` a position in the table's part of `values`
  const Lookup* lookups;         // by position; null: all coefficients are 1 (the means' counts are in Gradients)
  const float* inverse_count;    // by bag: 1 / count; null: all 1
  std::int64_t first_value;      // position 0 is values[first_value]
};

// Stable radix sort by the `bits` bits from `shift` up. Returns the array that holds the result.
template <class Key>
Key* sort_keys(Key* keys, Key* other, std::int64_t n, int shift, int bits) {
  if (bits == 0 || n == 0) return keys;
  constexpr int kMostBits = 11, kMostPasses = 6;
  int passes = 0, digit = 0;
  std::int64_t least = INT64_MAX;
  for (int p = (bits + kMostBits - 1) / kMostBits; p <= kMostPasses; ++p) {
    const int d = (bits + p - 1) / p;
    const std::int64_t cost = p * (4 * n + (std::int64_t{1} << d));
    if (cost < least) least = cost, passes = p, digit = d;
  }
  std::uint32_t starts[kMostPasses << kMostBits];
  const std::int64_t buckets = std::int64_t{1} << digit;
  const auto mask = static_cast<Key>(buckets - 1);
  for (std::int64_t i = 0; i < passes * buckets; ++i) starts[i] = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    Key row = keys[i] >> shift;
    for (int p = 0; p < passes; ++p, row >>= digit) ++starts[p * buckets + static_cast<std::int64_t>(row & mask)];
  }
  for (int p = 0; p < passes; ++p) {
    std::uint32_t* start = starts + p * buckets;
    std::uint32_t sum = 0;
    for (std::int64_t d = 0; d < buckets; ++d) {
      const std::uint32_t size = start[d];
      start[d] = sum;
      sum += size;
    }
    const int low = shift + p * digit;
    for (std::int64_t i = 0; i < n; ++i) other[start[keys[i] >> low & mask]++] = keys[i];
    Key* const swap = keys;
    keys = other;
    other = swap;
  }
  return keys;
}

// Keys (row << payload_bits | payload) of the share's lookups, sorted, then cut into runs.
template <class Key, bool by_lookup>
void sort_runs(const BagBackwardArgs& args, const BagShare& share, bool check, int payload_bits, RowRuns& out,
               Lookup* lookups) {
  const BagIndices& in = args.indices;
  const std::int64_t* offsets = in.offsets + share.table * in.batch;
  const auto rows = static_cast<std::uint64_t>(args.tables[share.table].num_rows);
  const auto room = static_cast<std::size_t>(offsets[in.batch] - offsets[0] + 1);
  auto* keys = static_cast<Key*>(scratch(kKeys, room * sizeof(Key)));
  auto* other = static_cast<Key*>(scratch(kOtherKeys, room * sizeof(Key)));
  const bool all = !check && share.parts == 1;
  std::int64_t n = 0;
  for (std::int64_t b = 0; b < in.batch; ++b)
    for (std::int64_t v = offsets[b]; v < offsets[b + 1]; ++v) {
      const auto row = static_cast<std::uint64_t>(in.values[v]);
      const std::int64_t position = v - out.first_value;
      keys[n] = static_cast<Key>(row << payload_bits | static_cast<std::uint64_t>(by_lookup ? position : b));
      n += all || ((!check || row < rows) && share.holds(row));
      if constexpr (by_lookup) {
        const float weight = in.weights != nullptr ? in.weights[v] : 1.0f;
        lookups[position] = {weight * (out.inverse_count != nullptr ? out.inverse_count[b] : 1.0f),
                             static_cast<std::int32_t>(b)};
      }
    }
  const Key* sorted = sort_keys(keys, other, n, payload_bits, std::bit_width(rows - 1));
  auto* payload = static_cast<std::uint32_t*>(scratch(sorted == keys ? kOtherKeys : kKeys, room * sizeof(Key)));
  auto* runs = static_cast<Run*>(scratch(kRuns, room * sizeof(Run)));
  const auto mask = static_cast<Key>((Key{1} << payload_bits) - 1);
  std::int64_t size = 0;
  std::uint64_t last = ~std::uint64_t{0};
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint64_t row = sorted[i] >> payload_bits;
    payload[i] = static_cast<std::uint32_t>(sorted[i] & mask);
    runs[size] = {static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(i)};
    size += row != last;
    last = row;
  }
  runs[size].begin = static_cast<std::uint32_t>(n);
  out.runs = runs;
  out.size = size;
  out.payload = payload;
}

// 1 / rows in each bag of a table with mean pooling. False when all are 1.
inline bool inverse_counts(const BagBackwardArgs& args, std::int64_t t, bool check, float* inverse) {
  const BagIndices& in = args.indices;
  const std::int64_t* offsets = in.offsets + t * in.batch;
  const auto rows = static_cast<std::uint64_t>(args.tables[t].num_rows);
  bool any = false;
  for (std::int64_t b = 0; b < in.batch; ++b) {
    std::int64_t kept = offsets[b + 1] - offsets[b];
    if (check)
      for (std::int64_t v = offsets[b]; v < offsets[b + 1]; ++v)
        kept -= static_cast<std::uint64_t>(in.values[v]) >= rows;
    inverse[b] = kept > 1 ? 1.0f / static_cast<float>(kept) : 1.0f;
    any |= kept > 1;
  }
  return any;
}

// `check`: some lookups lie outside their table.
inline RowRuns runs_of(const BagBackwardArgs& args, const BagShare& share, bool check) {
  const BagIndices& in = args.indices;
  const TableView& table = args.tables[share.table];
  const std::int64_t first = in.first_value(share.table, 0), lookups = in.first_value(share.table, in.batch) - first;
  RowRuns out{};
  out.first_value = first;
  if (table.pooling == Pooling::mean) {
    auto* inverse = static_cast<float*>(scratch(kInverseCounts, static_cast<std::size_t>(in.batch + 1) * 4));
    if (inverse_counts(args, share.table, check, inverse)) out.inverse_count = inverse;
  }
  const bool by_lookup = in.weights != nullptr || args.grad_weights != nullptr;
  const std::int64_t payloads = by_lookup ? lookups : in.batch;
  const int payload_bits = payloads > 1 ? std::bit_width(static_cast<std::uint64_t>(payloads - 1)) : 1;
  const bool narrow = payload_bits + std::bit_width(static_cast<std::uint64_t>(table.num_rows - 1)) <= 32;
  if (by_lookup) {
    auto* list = static_cast<Lookup*>(scratch(kLookups, static_cast<std::size_t>(lookups + 1) * sizeof(Lookup)));
    out.lookups = list;
    narrow ? sort_runs<std::uint32_t, true>(args, share, check, payload_bits, out, list)
           : sort_runs<std::uint64_t, true>(args, share, check, payload_bits, out, list);
  } else {
    narrow ? sort_runs<std::uint32_t, false>(args, share, check, payload_bits, out, nullptr)
           : sort_runs<std::uint64_t, false>(args, share, check, payload_bits, out, nullptr);
  }
  return out;
}

// Gradients of a table's bags: that of bag b is [dim] at data + b * stride.
struct Gradients {
  const float* data;
  std::int64_t stride;
};

// They are copied together where they are read often (rows a large power of two apart share a few sets of the caches)
// and where means without weights want them scaled.
inline Gradients gradients_of(const BagBackwardArgs& args, const BagShare& share, const RowRuns& runs) {
  constexpr std::int64_t kOften = 4;
  const std::int64_t dim = args.tables[share.table].dim, batch = args.indices.batch;
  const float* from = static_cast<const float*>(args.grad_out.data) + share.column;
  const bool scaled = runs.inverse_count != nullptr && runs.lookups == nullptr;
  if (!scaled && runs.runs[runs.size].begin < kOften * batch) return {from, args.grad_out.row_stride};
  const std::int64_t stride = (dim + 15) / 16 * 16;
  auto* to = static_cast<float*>(scratch(kGradients, static_cast<std::size_t>(batch * stride) * sizeof(float)));
  for (std::int64_t b = 0; b < batch; ++b) {
    const float* __restrict g = from + b * args.grad_out.row_stride;
    float* __restrict copy = to + b * stride;
    const float factor = scaled ? runs.inverse_count[b] : 1.0f;
    for (std::int64_t c = 0; c < dim; ++c) copy[c] = factor * g[c];
  }
  return {to, stride};
}

}  // namespace
}  // namespace octavo
