// Rows on their way into L2 before a bag kernel reads them, across bags and tables (cpu-ceilings: t1, far ahead).
//
// In an anonymous namespace: compiled with several instruction sets, and the linker must never mix the copies.
#pragma once

#include <cstdint>

#include "octavo/embedding.hpp"

namespace octavo {
namespace {

// Runs `kAhead` lookups in front of the kernel, which calls step() once per lookup of its bags.
class BagPrefetch {
 public:
  static constexpr std::int64_t kAheadNarrow = 64, kAheadWide = 32;  // lookups; wide: rows beyond 140 bytes
  static constexpr std::int64_t kResidentBytes = 512 << 10;          // tables this small stay in L2

  // The lookups of this thread are values[first .. last), the first of them in table `table`.
  BagPrefetch(const TableView* tables, const BagIndices& in, std::int64_t table, std::int64_t first, std::int64_t last)
      : tables_(tables), in_(in), table_(table - 1), next_(first), table_end_(first), last_(last) {
    std::int64_t widest = 0;
    for (std::int64_t t = 0; t < in.num_tables; ++t) {
      const std::int64_t bytes = tables[t].dim * static_cast<std::int64_t>(size_of(tables[t].dtype));
      widest = bytes > widest ? bytes : widest;
    }
    const std::int64_t ahead = widest <= 140 ? kAheadNarrow : kAheadWide;
    for (std::int64_t i = 0; i < ahead; ++i) step();
  }

  [[gnu::always_inline]] void step() {
    if (next_ == table_end_ && !enter_next_table()) return;
    const std::int64_t row = in_.values[next_++];
    if (lines_ == 0) return;
    const char* p = rows_ + static_cast<std::uint64_t>(row) * row_bytes_;  // a wild index is never dereferenced
    __builtin_prefetch(p, 0, 2);
    for (std::int64_t line = 1; line < lines_; ++line) __builtin_prefetch(p + line * 64, 0, 2);
    if (tail_ > 0) __builtin_prefetch(p + tail_, 0, 2);
    if (scale_ != nullptr) __builtin_prefetch(scale_ + static_cast<std::uint64_t>(row) * scale_bytes_, 0, 2);
  }

 private:
  bool enter_next_table() {
    while (next_ < last_ && table_ + 1 < in_.num_tables) {
      ++table_;
      const std::int64_t end = in_.offsets[(table_ + 1) * in_.batch];
      table_end_ = end < last_ ? end : last_;
      if (next_ < table_end_) {
        aim(tables_[table_]);
        return true;
      }
    }
    table_end_ = next_ = last_;
    return false;
  }

  void aim(const TableView& table) {
    const auto element = static_cast<std::int64_t>(size_of(table.dtype));
    const std::int64_t bytes = table.dim * element;
    rows_ = static_cast<const char*>(table.rows);
    row_bytes_ = static_cast<std::uint64_t>(table.row_stride * element);
    scale_ = reinterpret_cast<const char*>(table.scale);
    scale_bytes_ = table.dtype == DType::u8 ? 8 : 4;
    lines_ = table.num_rows * table.row_stride * element <= kResidentBytes ? 0 : (bytes + 63) / 64;
    const bool aligned = reinterpret_cast<std::uintptr_t>(rows_) % 64 == 0 && row_bytes_ % 64 == 0;
    tail_ = aligned ? 0 : bytes - 1;  // an unaligned row may touch one line more
  }

  const TableView* tables_;
  const BagIndices& in_;
  std::int64_t table_, next_, table_end_, last_;
  const char* rows_ = nullptr;
  const char* scale_ = nullptr;
  std::uint64_t row_bytes_ = 0, scale_bytes_ = 0;
  std::int64_t lines_ = 0, tail_ = 0;
};

}  // namespace
}  // namespace octavo
