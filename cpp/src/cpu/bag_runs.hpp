// The lookups of a table sorted by row, so that a backward kernel updates every touched row once, in a fixed order.
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

// Scratch slots: 0 and 1 keys, 2 and 3 per-lookup and per-bag coefficients, 4 bags, 5 a kernel's sums, 7 the shares.
enum BagScratch { kKeys = 0, kSortedKeys, kCoefficients, kInverseCounts, kBags, kSums, kShares = 7 };

// Part `part` of `parts` of the rows of one table: blocks of 16 rows (a cache line of optimizer state) dealt by hash.
struct BagShare {
  std::int64_t table, column;  // column: first output column of the table
  std::uint64_t part, parts;
  std::int64_t cost;
  int owner;

  bool holds(std::uint64_t row) const {
    return parts == 1 || (((row >> 4) * 0x9e3779b97f4a7c15ull >> 32) * parts >> 32) == part;
  }
};

struct BagShares {
  BagShare* begin;
  std::int64_t size;
};

// Tables cut into shares of at most half a thread's fair part, the largest first to the least loaded thread.
inline BagShares share_tables(const TableView* tables, const BagIndices& in, int count) {
  const auto cost = [&](std::int64_t t) {
    const std::int64_t* offsets = in.offsets + t * in.batch;
    return (offsets[in.batch] - offsets[0]) * (8 + tables[t].dim / 4);
  };
  std::int64_t total = 0;
  for (std::int64_t t = 0; t < in.num_tables; ++t) total += cost(t);
  const std::int64_t most = count == 1 ? total + 1 : total / (2 * count) + 1;
  const std::size_t room = static_cast<std::size_t>(in.num_tables + 2 * count + 2);
  auto* shares = static_cast<BagShare*>(
      scratch(kShares, room * sizeof(BagShare) + static_cast<std::size_t>(count) * sizeof(std::int64_t)));
  auto* load = reinterpret_cast<std::int64_t*>(shares + room);
  std::int64_t size = 0, column = 0;
  for (std::int64_t t = 0; t < in.num_tables; ++t) {
    const std::int64_t whole = cost(t);
    const auto parts = static_cast<std::uint64_t>((whole + most - 1) / most);
    for (std::uint64_t p = 0; p < parts; ++p) {
      const BagShare share{t, column, p, parts, whole / static_cast<std::int64_t>(parts), 0};
      std::int64_t at = size++;
      for (; at > 0 && shares[at - 1].cost < share.cost; --at) shares[at] = shares[at - 1];
      shares[at] = share;
    }
    column += tables[t].dim;
  }
  for (int i = 0; i < count; ++i) load[i] = 0;
  for (std::int64_t s = 0; s < size; ++s) {
    int least = 0;
    for (int i = 1; i < count; ++i)
      if (load[i] < load[least]) least = i;
    shares[s].owner = least;
    load[least] += shares[s].cost;
  }
  return {shares, size};
}

inline int backward_threads(const BagIndices& in) {
  constexpr std::int64_t kLookupsPerThread = 512;
  const std::int64_t wanted = in.num_values / kLookupsPerThread;
  const int most = threads();
  return wanted < 1 ? 1 : wanted < most ? static_cast<int>(wanted) : most;
}

// Keys (row << payload_bits | payload), ascending. The payload is the bag or, where lookups differ within a bag
// (weights), the lookup's position in the table's part of `values`.
struct SortedLookups {
  const std::uint64_t* keys;
  std::int64_t size;
  int payload_bits;
  std::int64_t first_value;    // position 0 is values[first_value]
  const float* coefficient;    // by payload: weight / count; null: all 1
  const float* inverse_count;  // by bag: 1 / count for mean; null: all 1
  const std::int32_t* bag_of;  // by payload; null: the payload is the bag

  std::uint64_t row(std::int64_t i) const { return keys[i] >> payload_bits; }
  std::int64_t payload(std::int64_t i) const {
    return static_cast<std::int64_t>(keys[i] & ((std::uint64_t{1} << payload_bits) - 1));
  }
  std::int64_t bag(std::int64_t payload) const { return bag_of != nullptr ? bag_of[payload] : payload; }
  float weight(std::int64_t payload) const { return coefficient != nullptr ? coefficient[payload] : 1.0f; }
};

// Stable radix sort by the bits from `shift` up to `shift + bits`. Returns the array that holds the result.
inline std::uint64_t* sort_keys(std::uint64_t* keys, std::uint64_t* other, std::int64_t n, int shift, int bits) {
  const int digit = n < 4096 ? 8 : 11;
  std::int64_t start[1 << 11];
  for (int done = 0; done < bits; done += digit) {
    const int low = shift + done;
    const std::uint64_t mask = (std::uint64_t{1} << digit) - 1;
    for (std::uint64_t d = 0; d <= mask; ++d) start[d] = 0;
    for (std::int64_t i = 0; i < n; ++i) ++start[keys[i] >> low & mask];
    std::int64_t sum = 0;
    for (std::uint64_t d = 0; d <= mask; ++d) {
      const std::int64_t size = start[d];
      start[d] = sum;
      sum += size;
    }
    for (std::int64_t i = 0; i < n; ++i) other[start[keys[i] >> low & mask]++] = keys[i];
    std::uint64_t* const swap = keys;
    keys = other;
    other = swap;
  }
  return keys;
}

inline SortedLookups sort_lookups(const BagBackwardArgs& args, const BagShare& share, bool check) {
  const BagIndices& in = args.indices;
  const TableView& table = args.tables[share.table];
  const std::int64_t* offsets = in.offsets + share.table * in.batch;
  const std::int64_t first = offsets[0], lookups = offsets[in.batch] - first;
  const bool by_lookup = in.weights != nullptr || args.grad_weights != nullptr;
  const auto rows = static_cast<std::uint64_t>(table.num_rows);
  const auto bytes = [](std::int64_t n, std::size_t size) { return static_cast<std::size_t>(n + 1) * size; };
  auto* keys = static_cast<std::uint64_t*>(scratch(kKeys, bytes(lookups, 8)));
  auto* other = static_cast<std::uint64_t*>(scratch(kSortedKeys, bytes(lookups, 8)));
  SortedLookups sorted{};
  sorted.first_value = first;
  sorted.payload_bits = std::bit_width(static_cast<std::uint64_t>(by_lookup ? lookups : in.batch));
  float* inverse = nullptr;
  if (table.pooling == Pooling::mean)
    sorted.inverse_count = inverse = static_cast<float*>(scratch(kInverseCounts, bytes(in.batch, 4)));
  float* coefficients = nullptr;
  std::int32_t* bags = nullptr;
  if (by_lookup) {
    sorted.coefficient = coefficients = static_cast<float*>(scratch(kCoefficients, bytes(lookups, 4)));
    sorted.bag_of = bags = static_cast<std::int32_t*>(scratch(kBags, bytes(lookups, 4)));
  } else {
    sorted.coefficient = inverse;
  }
  std::int64_t n = 0;
  for (std::int64_t b = 0; b < in.batch; ++b) {
    if (inverse != nullptr) {
      std::int64_t kept = offsets[b + 1] - offsets[b];
      if (check)
        for (std::int64_t v = offsets[b]; v < offsets[b + 1]; ++v)
          kept -= static_cast<std::uint64_t>(in.values[v]) >= rows;
      inverse[b] = kept > 1 ? 1.0f / static_cast<float>(kept) : 1.0f;
    }
    for (std::int64_t v = offsets[b]; v < offsets[b + 1]; ++v) {
      const auto row = static_cast<std::uint64_t>(in.values[v]);
      if ((check && row >= rows) || !share.holds(row)) continue;
      const std::int64_t position = v - first;
      if (by_lookup) {
        bags[position] = static_cast<std::int32_t>(b);
        coefficients[position] = (in.weights != nullptr ? in.weights[v] : 1.0f) * (inverse ? inverse[b] : 1.0f);
      }
      keys[n++] = row << sorted.payload_bits | static_cast<std::uint64_t>(by_lookup ? position : b);
    }
  }
  sorted.size = n;
  const int row_bits = std::bit_width(rows - 1);
  sorted.keys = sort_keys(keys, other, n, sorted.payload_bits, row_bits);
  return sorted;
}

}  // namespace
}  // namespace octavo
