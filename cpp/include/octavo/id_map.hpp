// Rows of a table for 64-bit ids that are not known beforehand: an open-addressing hash id -> row of bounded memory.
#pragma once

#include <cstdint>
#include <vector>

#include "octavo/embedding.hpp"
#include "octavo/memory.hpp"
#include "octavo/threading.hpp"
#include "octavo/types.hpp"

namespace octavo {

struct IdMapConfig {
  std::int64_t max_rows = 0;     // ids held at once, below 2^31
  std::int64_t admit_after = 1;  // an id gets a row at this sighting, 1..255
  std::int64_t max_age = 0;      // a row last seen longer ago may go, in units of `now`; 0: none is too old
};

Status validate(const IdMapConfig& config);

// Sightings of ids that have no row: a count-min sketch of one byte per counter, four of them in one cache line per id.
// It may count too many (another id shares all four), never too few within its period: after 8 * max_rows sightings all
// counters are halved.
class Sightings {
 public:
  Sightings() = default;
  explicit Sightings(std::int64_t max_rows);

  // Counts one more of the id that hashes to `hash`; returns how many there are now, at most 255.
  int add(std::uint64_t hash);

  std::vector<std::uint8_t>& counters() { return counters_; }
  const std::vector<std::uint8_t>& counters() const { return counters_; }
  std::int64_t since_halving = 0;

 private:
  std::vector<std::uint8_t> counters_;  // a power of two lines of 64
  std::int64_t period_ = 0;
};

// What a copy of the map on a device holds of a slot.
struct alignas(16) IdSlot {
  std::int64_t id, row;  // row -1: empty
};

// No two ids ever share a row: a slot of the open-addressing hash holds all that is known of an id, so that finding and
// touching one takes a single cache miss. Rows are a function of the stream of calls alone, whatever the number of
// threads: a new id takes the lowest free row. When the map is full, an admission makes room: all rows older than
// max_age go, then those of least (score, last seen, id) until a sixteenth of the map is free; never a row that the
// same call has asked for. If all are, the id gets none.
//
// A call that asks for an id raises its score by one, from at least the floor to at most kSpread above it; the floor is
// the highest score that room was ever made from. So what was popular once ages without anyone touching it.
class IdMap {
 public:
  static constexpr std::uint32_t kSpread = 32;

  // config is valid.
  explicit IdMap(const IdMapConfig& config);

  const IdMapConfig& config() const { return config_; }
  std::int64_t size() const { return size_; }
  std::int64_t bytes() const;                        // of memory, whatever it holds
  std::int64_t removed() const { return removed_; }  // ids that lost their row so far
  std::int64_t refused() const { return refused_; }  // admissions that found no room
  std::uint32_t floor() const { return floor_; }
  Sightings& sightings() { return sightings_; }

  // rows[i] of ids[i], -1 without one. Changes nothing.
  void lookup(const std::int64_t* ids, std::int64_t n, std::int64_t* rows) const;

  // The same at time `now`, which counts as seeing each; ids without a row that were seen often enough get one, in
  // their order, for all their places in the call. fresh() then tells which rows are new.
  void lookup_or_insert(const std::int64_t* ids, std::int64_t n, std::int64_t now, std::int64_t* rows);
  const std::vector<std::int64_t>& fresh() const { return fresh_; }
  std::int64_t id_of(std::int64_t row) const { return slot_at(row).id; }  // of a row that holds one

  // Ids without a row are ignored. Both return the number of rows freed.
  std::int64_t erase(const std::int64_t* ids, std::int64_t n);
  std::int64_t evict(std::int64_t now);  // those older than max_age

  // Rows [start, stop) that hold an id, ascending; arrays of that many, any may be null. Returns their number.
  std::int64_t entries(std::int64_t start, std::int64_t stop, std::int64_t* rows, std::int64_t* ids,
                       std::int64_t* last_seen, std::int64_t* scores) const;

  // Makes this the map of these n entries. Refuses a row outside the map, an id or a row twice.
  Status restore(std::int64_t n, const std::int64_t* rows, const std::int64_t* ids, const std::int64_t* last_seen,
                 const std::int64_t* scores, std::uint32_t floor);

  // For differences to a saved state: since then, the rows that held an id and hold none now; and the ids that had a
  // row and lost it, in the order they did (some may have come back).
  void mark_saved();
  std::vector<std::int64_t> freed() const;
  const std::vector<std::int64_t>& erased() const { return erased_; }

  // For one copy of the slots elsewhere: all of them, or those at `places` [n].
  std::int64_t slots() const { return static_cast<std::int64_t>(count_); }
  void copy_slots(IdSlot* to) const;
  void copy_slots(const std::int64_t* places, std::int64_t n, IdSlot* to) const;
  // Whether the copy is not what it was when mark_copied was called, and the slots to copy then: each once or more.
  // Before the first call, after restore and where more than an eighth changed: all are.
  bool copy_is_old() const { return all_changed_ || !changed_.empty(); }
  bool all_changed() const { return all_changed_; }
  const std::vector<std::int64_t>& changed() const { return changed_; }
  void mark_copied();

 private:
  struct alignas(32) Slot {
    std::int64_t id, last_seen;
    std::uint64_t use;  // score, and in the lower half the last call that asked for it
    std::int32_t row;   // -1: empty
    std::uint32_t score() const { return static_cast<std::uint32_t>(use >> 32); }
    std::uint32_t call() const { return static_cast<std::uint32_t>(use); }
    static std::uint64_t used(std::uint32_t score, std::uint32_t call) { return std::uint64_t{score} << 32 | call; }
  };

  const Slot& slot_at(std::int64_t row) const { return slots_.as<Slot>()[slot_of_.as<std::uint32_t>()[row]]; }
  std::uint64_t home(std::int64_t id) const;
  std::uint64_t after(std::uint64_t slot) const { return slot + 1 == count_ ? 0 : slot + 1; }
  std::uint64_t distance(std::uint64_t from, std::uint64_t to) const {
    return to >= from ? to - from : to + count_ - from;
  }
  std::uint64_t find(std::int64_t id, std::uint64_t slot) const;
  template <class Found>
  void each_slot(const std::int64_t* ids, Range mine, Found&& found) const;
  void touch(Slot& slot, std::int64_t now) const;
  void lookup_and_touch(const std::int64_t* ids, std::int64_t n, std::int64_t now, std::int64_t* rows);
  std::int64_t insert(std::int64_t id, std::uint64_t slot, std::int64_t now);
  void place(std::uint64_t slot, const Slot& content);
  void free_slot(std::uint64_t slot);
  bool remove(std::int64_t id);
  std::int64_t remove_expired(std::int64_t now, bool pinned);
  bool make_room(std::int64_t now);
  void note_change(std::uint64_t slot);
  bool holds(std::int64_t row) const { return live_[static_cast<std::uint64_t>(row) >> 6] >> (row & 63) & 1; }
  void clear();

  IdMapConfig config_;
  std::uint64_t count_ = 0;                  // of slots
  AlignedBuffer slots_, slot_of_;            // [count_]; [max_rows] uint32: of rows that hold an id
  std::vector<std::uint64_t> live_, saved_;  // bit per row: holds an id now, held one at mark_saved
  std::vector<std::int64_t> fresh_, erased_;
  std::vector<std::vector<std::int64_t>> missing_;  // of a call's ids those without a row, by thread
  std::vector<std::int64_t> changed_;               // slots, since mark_copied
  bool all_changed_ = true;
  Sightings sightings_;
  std::int64_t size_ = 0, lowest_ = 0, removed_ = 0, refused_ = 0;
  std::uint32_t call_ = 0, floor_ = 0;
};

// The map of one table as kernels on a device read it.
struct IdSlots {
  const IdSlot* slots = nullptr;  // null: the table's values are rows
  std::int64_t count = 0;
};

// Rows of the ids of many tables by copies of their maps' slots: rows[v] = 1 + lookup's, so 0 for an id without one; a
// table without a map keeps its values. What no bag holds gets -1.
struct FindRowsArgs {
  const IdSlots* maps = nullptr;  // [indices.num_tables]
  BagIndices indices;             // values: ids
  std::int64_t* rows = nullptr;   // [indices.num_values]
  void* stream = nullptr;
};
using FindRowsLauncher = Status (*)(const FindRowsArgs&);

// First values of new rows, uniform in [-half_width, half_width), a function of (seed, id, column): out [n, dim].
void draw_rows(const std::int64_t* ids, std::int64_t n, std::int64_t dim, std::uint64_t seed, float half_width,
               float* out);

// flags[v] = 1 for every v of values in [0, rows).
void mark_rows(const std::int64_t* values, std::int64_t n, std::uint8_t* flags, std::int64_t rows);

}  // namespace octavo
