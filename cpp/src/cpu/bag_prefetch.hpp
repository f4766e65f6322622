// Rows on their way into L1 before a bag kernel reads them, across bags and tables. Not into L2 alone: on some machines
// (Zen 5, from process to process) such a prefetch is dropped, and short bags then take three times as long.
//
// In an anonymous namespace: compiled with several instruction sets, and the linker must never mix the copies.
#pragma once

#include <cstdint>

#include "octavo/embedding.hpp"

namespace octavo {
namespace {

// While the kernel works on lookup v < until of its table, it fetches the row of lookup v + ahead:
// rows + values[v + ahead] * row_bytes (a wild index is never dereferenced), and likewise its scale.
struct BagAim {
  const char* rows;
  std::uint64_t row_bytes;  // from row to row
  const char* scale;        // null: none, or in the row
  std::uint64_t scale_bytes;
  std::int64_t bytes, ahead, until;  // bytes: of a row, its scale included where it lies there
  bool straddles;                    // a row may touch one cache line more than its bytes fill
};

inline bool scale_in_row(const TableView& table) {
  const auto stride = table.row_stride * static_cast<std::int64_t>(size_of(table.dtype));
  const auto* rows = static_cast<const char*>(table.rows);
  const auto* scale = reinterpret_cast<const char*>(table.scale);
  return scale != nullptr && scale >= rows && scale < rows + stride && table.scale_stride * 4 == stride;
}

// Fetches `bytes` bytes of a row, known to the compiler so that no loop is left, and the row's end.
template <std::int64_t bytes>
[[gnu::always_inline]] inline void prefetch_row(const BagAim& aim, std::int64_t row, std::int64_t first_byte) {
  const char* p = aim.rows + static_cast<std::uint64_t>(row) * aim.row_bytes + first_byte;
#pragma GCC unroll 16
  for (std::int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(p + at, 0, 3);
  if (aim.straddles) __builtin_prefetch(p + aim.bytes - 1 - first_byte, 0, 3);
  if (aim.scale != nullptr) __builtin_prefetch(aim.scale + static_cast<std::uint64_t>(row) * aim.scale_bytes, 0, 3);
}

// The aims of one thread's lookups, one after the other.
class BagPrefetch {
 public:
  // The lookups of this thread are values[first .. last), the first of them in table `table`. `outputs`: rows of output
  // of all tables together, which take time as well.
  BagPrefetch(const TableView* tables, const BagIndices& in, std::int64_t outputs, std::int64_t table,
              std::int64_t first, std::int64_t last)
      : tables_(tables), in_(in), table_(table), last_(last) {
    std::int64_t widest = 0, total = 0;
    for (std::int64_t t = 0; t < in.num_tables; ++t) {
      const std::int64_t bytes = extent(tables[t]);
      widest = bytes > widest ? bytes : widest;
      total += bytes * tables[t].num_rows;
    }
    if (total <= kResidentBytes) {
      stop();
      return;
    }
    ahead_ = widest <= 140 ? kAheadNarrow : kAheadWide;
    if (in.first_value(in.num_tables, 0) - in.first_value(0, 0) < 4 * outputs) ahead_ /= 2;
    for (std::int64_t v = first; v < first + ahead_ && v < last; ++v) {
      if (v == first || v == aim_.until) point_at(v, 0);
      fetch(in.values[v]);
    }
    advance(first);
  }

  const BagAim& aim() const { return aim_; }
  // The same field by field: a copy as a whole would stay in memory, and every row would read it there.
  [[gnu::always_inline]] void get(BagAim& aim) const {
    aim.rows = aim_.rows;
    aim.row_bytes = aim_.row_bytes;
    aim.scale = aim_.scale;
    aim.scale_bytes = aim_.scale_bytes;
    aim.bytes = aim_.bytes;
    aim.ahead = aim_.ahead;
    aim.until = aim_.until;
    aim.straddles = aim_.straddles;
  }

  // The whole row.
  void fetch(std::int64_t row) const {
    for (std::int64_t at = 0; at < aim_.bytes; at += 64) prefetch_row<64>(aim_, row, at);
  }

  // The aim from lookup v on.
  void advance(std::int64_t v) {
    if (v + ahead_ < last_)
      point_at(v + ahead_, ahead_);
    else
      stop();
  }

 private:
  static constexpr std::int64_t kAheadNarrow = 128, kAheadWide = 64;  // lookups; wide: beyond 140 bytes
  static constexpr std::int64_t kResidentBytes = 512 << 10;           // tables this small stay in L2

  // Bytes of a row from its first code to its last byte.
  static std::int64_t extent(const TableView& table) {
    return scale_in_row(table) ? table.scale_stride * 4 : table.stored_bytes();
  }

  // Aims at the table that holds lookup `fetched`, for kernels `ahead` lookups behind it.
  void point_at(std::int64_t fetched, std::int64_t ahead) {
    while (in_.offsets[(table_ + 1) * in_.batch] <= fetched) ++table_;
    const TableView& table = tables_[table_];
    const std::int64_t end = in_.offsets[(table_ + 1) * in_.batch];
    aim_.rows = static_cast<const char*>(table.rows);
    aim_.row_bytes = static_cast<std::uint64_t>(table.row_stride) * size_of(table.dtype);
    const bool apart = !scale_in_row(table);
    aim_.scale = table.scale_exponents != nullptr ? reinterpret_cast<const char*>(table.scale_exponents)
                 : apart                          ? reinterpret_cast<const char*>(table.scale)
                                                  : nullptr;
    aim_.scale_bytes = table.scale_exponents != nullptr ? 1 : 4 * static_cast<std::uint64_t>(table.scale_stride);
    aim_.bytes = extent(table);
    aim_.ahead = ahead;
    aim_.until = (end < last_ ? end : last_) - ahead;
    // rows start at every multiple of `step` in a line, the last of which leaves least of it
    const std::uint64_t at = aim_.row_bytes | 64;
    const auto step = static_cast<std::int64_t>(at & (~at + 1));  // the largest power of two that divides both
    const auto start = 64 - step + static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(aim_.rows) % 64) % step;
    aim_.straddles = (start + aim_.bytes - 1) / 64 >= (table.stored_bytes() + 63) / 64;
  }

  // Nothing left to fetch: aims at a line that is in L1 anyway.
  void stop() {
    const char* here = reinterpret_cast<const char*>(this);
    aim_ = {here, 0, nullptr, 0, 0, 0, INT64_MAX, false};
  }

  const TableView* tables_;
  const BagIndices& in_;
  std::int64_t table_, last_, ahead_ = 0;
  BagAim aim_{};
};

}  // namespace
}  // namespace octavo
