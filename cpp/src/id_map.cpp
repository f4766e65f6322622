#include "octavo/id_map.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>

#include "cpu/bag_random.hpp"
#include "id_hash.hpp"

namespace octavo {
namespace {

constexpr std::int64_t kAhead = 32;           // ids whose slots are on their way
constexpr std::int64_t kParallelFrom = 4096;  // ids: fewer cost less than a fork
constexpr std::int64_t kLine = 64;

bool older(std::int64_t last_seen, std::int64_t now, std::int64_t max_age) {
  if (max_age == 0 || last_seen >= now) return false;
  return static_cast<std::uint64_t>(now) - static_cast<std::uint64_t>(last_seen) > static_cast<std::uint64_t>(max_age);
}

}  // namespace

Status validate(const IdMapConfig& config) {
  const auto found = [](std::int64_t n) { return ", found " + std::to_string(n); };
  if (config.max_rows < 0 || config.max_rows >= std::numeric_limits<std::int32_t>::max())
    return Status::invalid("max_rows: expected 0..2147483646" + found(config.max_rows));
  if (config.admit_after < 1 || config.admit_after > 255)
    return Status::invalid("admit_after: expected 1..255 sightings" + found(config.admit_after));
  if (config.max_age < 0) return Status::invalid("max_age: expected 0 or more" + found(config.max_age));
  return {};
}

Sightings::Sightings(std::int64_t max_rows)
    : counters_(std::max<std::uint64_t>(kLine, 4 * std::bit_ceil(static_cast<std::uint64_t>(max_rows)))),
      period_(std::max<std::int64_t>(kLine, 8 * max_rows)) {}

int Sightings::add(std::uint64_t hash) {
  const std::uint64_t lines = counters_.size() / kLine;
  std::uint8_t* line = counters_.data() + ((hash & 0xffffffffu) * lines >> 32) * kLine;
  const std::uint64_t where = hash * kGolden >> 48;  // four bits for each quarter of the line
  std::uint8_t* counter[4];
  for (int q = 0; q < 4; ++q) counter[q] = line + q * 16 + (where >> 4 * q & 15);
  const int least = std::min({*counter[0], *counter[1], *counter[2], *counter[3]});
  const int count = std::min(least + 1, 255);
  for (std::uint8_t* c : counter) *c = std::max(*c, static_cast<std::uint8_t>(count));
  if (++since_halving >= period_) {
    for (std::uint8_t& c : counters_) c >>= 1;
    since_halving = 0;
  }
  return count;
}

IdMap::IdMap(const IdMapConfig& config) : config_(config) {
  const auto rows = static_cast<std::uint64_t>(config.max_rows);
  count_ = (rows + rows / 2 + 8) / 2 * 2;  // at most two thirds full
  slots_ = AlignedBuffer(count_ * sizeof(Slot));
  slot_of_ = AlignedBuffer(rows * sizeof(std::uint32_t));
  live_.resize((rows + 63) / 64);
  saved_.resize(live_.size());
  if (config.admit_after > 1) sightings_ = Sightings(config.max_rows);
  clear();
}

void IdMap::clear() {
  std::memset(slots_.data(), 0xff, slots_.size());
  std::fill(live_.begin(), live_.end(), 0);
  size_ = lowest_ = 0;
  floor_ = 0;
  all_changed_ = true;
  changed_.clear();
}

std::int64_t IdMap::bytes() const {
  return static_cast<std::int64_t>(slots_.size() + slot_of_.size() + sightings_.counters().size() +
                                   (live_.size() + saved_.size()) * sizeof(std::uint64_t));
}

std::uint64_t IdMap::home(std::int64_t id) const { return home_slot(id, count_); }

// The slot of `id`, or the empty one where its probing ends, from `slot` on.
std::uint64_t IdMap::find(std::int64_t id, std::uint64_t slot) const {
  const Slot* slots = slots_.as<Slot>();
  while (slots[slot].row >= 0 && slots[slot].id != id) slot = after(slot);
  return slot;
}

// Calls found(i, slot) for each id, the slot it is in or an empty one. Slots are fetched kAhead ids before they are
// searched, one by one: in turns of blocks, cache misses would wait for the search and it for them.
template <class Found>
void IdMap::each_slot(const std::int64_t* ids, Range mine, Found&& found) const {
  const Slot* slots = slots_.as<Slot>();
  std::uint64_t homes[kAhead];
  const auto fetch = [&](std::int64_t i) {
    const std::uint64_t slot = homes[i & (kAhead - 1)] = home(ids[i]);
    __builtin_prefetch(slots + slot);
    __builtin_prefetch(slots + slot + 2);  // where every fourth or so ends
  };
  for (std::int64_t i = mine.begin; i < std::min(mine.begin + kAhead, mine.end); ++i) fetch(i);
  for (std::int64_t i = mine.begin; i < mine.end; ++i) {
    const std::uint64_t first = homes[i & (kAhead - 1)];
    if (i + kAhead < mine.end) fetch(i + kAhead);
    found(i, find(ids[i], first));
  }
}

void IdMap::lookup(const std::int64_t* ids, std::int64_t n, std::int64_t* rows) const {
  parallel_region(n < kParallelFrom ? 1 : threads(), [&](int thread, int of) {
    const Slot* slots = slots_.as<Slot>();
    each_slot(ids, partition(n, thread, of, kAhead),
              [&](std::int64_t i, std::uint64_t slot) { rows[i] = slots[slot].row; });
  });
}

// Once a call. Threads that meet here read the same old word or the new one, and write the same.
void IdMap::touch(Slot& slot, std::int64_t now) const {
  const std::atomic_ref<std::uint64_t> use(slot.use);
  const std::uint64_t before = use.load(std::memory_order_relaxed);
  if (static_cast<std::uint32_t>(before) == call_) return;
  const std::uint32_t score = std::max(static_cast<std::uint32_t>(before >> 32), floor_);
  const std::atomic_ref<std::int64_t> last_seen(slot.last_seen);
  last_seen.store(std::max(last_seen.load(std::memory_order_relaxed), now), std::memory_order_relaxed);
  use.store(Slot::used(std::min(score + 1, floor_ + kSpread), call_), std::memory_order_relaxed);
}

void IdMap::lookup_and_touch(const std::int64_t* ids, std::int64_t n, std::int64_t now, std::int64_t* rows) {
  const int count = n < kParallelFrom ? 1 : threads();
  missing_.resize(static_cast<std::size_t>(count));
  parallel_region(count, [&](int thread, int of) {
    Slot* slots = slots_.as<Slot>();
    std::vector<std::int64_t>& missing = missing_[static_cast<std::size_t>(thread)];
    missing.clear();
    each_slot(ids, partition(n, thread, of, kAhead), [&](std::int64_t i, std::uint64_t slot) {
      rows[i] = slots[slot].row;
      if (rows[i] < 0) return missing.push_back(i);
      touch(slots[slot], now);
    });
  });
}

void IdMap::lookup_or_insert(const std::int64_t* ids, std::int64_t n, std::int64_t now, std::int64_t* rows) {
  fresh_.clear();
  if (++call_ == 0) {  // wrapped around: no old record may look like one of this call
    for (std::uint64_t slot = 0; slot < count_; ++slot)
      if (slots_.as<Slot>()[slot].row >= 0) slots_.as<Slot>()[slot].use &= ~std::uint64_t{0xffffffff};
    call_ = 1;
  }
  lookup_and_touch(ids, n, now, rows);
  std::vector<std::int64_t>& missing = missing_[0];
  for (std::size_t t = 1; t < missing_.size(); ++t)
    missing.insert(missing.end(), missing_[t].begin(), missing_[t].end());
  const Slot* slots = slots_.as<Slot>();
  bool full = false;
  for (std::size_t m = 0; m < missing.size(); ++m) {
    if (m + kAhead / 2 < missing.size()) __builtin_prefetch(slots + home(ids[missing[m + kAhead / 2]]), 1);
    const std::int64_t i = missing[m];
    std::uint64_t slot = find(ids[i], home(ids[i]));
    rows[i] = slots[slot].row;
    if (rows[i] >= 0) continue;  // inserted earlier in this call
    if (config_.admit_after > 1 && sightings_.add(hash_of(ids[i])) < config_.admit_after) continue;
    if (size_ == config_.max_rows) {
      if (full || !make_room(now)) {
        full = true;
        ++refused_;
        continue;
      }
      slot = find(ids[i], home(ids[i]));
    }
    rows[i] = insert(ids[i], slot, now);
    fresh_.push_back(rows[i]);
  }
  if (config_.admit_after == 1 || fresh_.empty()) return;
  for (const std::int64_t i : missing)
    if (rows[i] < 0) rows[i] = slots[find(ids[i], home(ids[i]))].row;
}

std::int64_t IdMap::insert(std::int64_t id, std::uint64_t slot, std::int64_t now) {
  std::size_t word = static_cast<std::size_t>(lowest_) >> 6;
  while (live_[word] == ~std::uint64_t{0}) ++word;
  const std::int64_t row = static_cast<std::int64_t>(word * 64) + std::countr_one(live_[word]);
  place(slot, {id, now, Slot::used(floor_ + 1, call_), static_cast<std::int32_t>(row)});
  lowest_ = row + 1;
  return row;
}

void IdMap::place(std::uint64_t slot, const Slot& content) {
  slots_.as<Slot>()[slot] = content;
  slot_of_.as<std::uint32_t>()[content.row] = static_cast<std::uint32_t>(slot);
  live_[static_cast<std::size_t>(content.row) >> 6] |= std::uint64_t{1} << (content.row & 63);
  ++size_;
  note_change(slot);
}

void IdMap::note_change(std::uint64_t slot) {
  if (all_changed_) return;
  if (changed_.size() < count_ / 8) return changed_.push_back(static_cast<std::int64_t>(slot));
  all_changed_ = true;
  changed_ = {};
}

void IdMap::mark_copied() {
  all_changed_ = false;
  changed_.clear();
}

void IdMap::copy_slots(IdSlot* to) const {
  const Slot* slots = slots_.as<Slot>();
  for (std::uint64_t i = 0; i < count_; ++i) to[i] = {slots[i].id, slots[i].row};
}

void IdMap::copy_slots(const std::int64_t* places, std::int64_t n, IdSlot* to) const {
  const Slot* slots = slots_.as<Slot>();
  for (std::int64_t i = 0; i < n; ++i) to[i] = {slots[places[i]].id, slots[places[i]].row};
}

// Closes the gap, so that probing needs no tombstones.
void IdMap::free_slot(std::uint64_t hole) {
  Slot* slots = slots_.as<Slot>();
  for (std::uint64_t next = after(hole); slots[next].row >= 0; next = after(next)) {
    if (distance(home(slots[next].id), next) < distance(hole, next)) continue;  // its home is behind the hole
    slots[hole] = slots[next];
    slot_of_.as<std::uint32_t>()[slots[hole].row] = static_cast<std::uint32_t>(hole);
    note_change(hole);
    hole = next;
  }
  slots[hole].row = -1;
  note_change(hole);
}

bool IdMap::remove(std::int64_t id) {
  const std::uint64_t slot = find(id, home(id));
  const std::int64_t row = slots_.as<Slot>()[slot].row;
  if (row < 0) return false;
  free_slot(slot);
  const std::size_t word = static_cast<std::size_t>(row) >> 6;
  const std::uint64_t bit = std::uint64_t{1} << (row & 63);
  live_[word] &= ~bit;
  if (saved_[word] & bit) erased_.push_back(id);
  lowest_ = std::min(lowest_, row);
  --size_;
  ++removed_;
  return true;
}

std::int64_t IdMap::erase(const std::int64_t* ids, std::int64_t n) {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < n; ++i) count += remove(ids[i]);
  return count;
}

std::int64_t IdMap::evict(std::int64_t now) { return remove_expired(now, false); }

std::int64_t IdMap::remove_expired(std::int64_t now, bool pinned) {
  if (config_.max_age == 0) return 0;
  const Slot* slots = slots_.as<Slot>();
  std::vector<std::int64_t> old;
  for (const Slot* slot = slots; slot != slots + count_; ++slot)
    if (slot->row >= 0 && older(slot->last_seen, now, config_.max_age) && !(pinned && slot->call() == call_))
      old.push_back(slot->id);
  std::sort(old.begin(), old.end());
  for (const std::int64_t id : old) remove(id);
  return static_cast<std::int64_t>(old.size());
}

bool IdMap::make_room(std::int64_t now) {
  const std::int64_t wanted = std::max<std::int64_t>(1, config_.max_rows / 16);
  const std::int64_t gone = remove_expired(now, true);
  if (gone < wanted) {
    struct Value {
      std::uint32_t score;
      std::int64_t last_seen, id;
      bool operator<(const Value& o) const {
        return std::tie(score, last_seen, id) < std::tie(o.score, o.last_seen, o.id);
      }
    };
    const Slot* slots = slots_.as<Slot>();
    std::vector<Value> values;
    values.reserve(static_cast<std::size_t>(size_));
    for (const Slot* slot = slots; slot != slots + count_; ++slot)
      if (slot->row >= 0 && slot->call() != call_)
        values.push_back({std::max(slot->score(), floor_), slot->last_seen, slot->id});
    const auto least = values.begin() + std::min(wanted - gone, static_cast<std::int64_t>(values.size()));
    if (least != values.end()) std::nth_element(values.begin(), least, values.end());
    std::sort(values.begin(), least);  // the order in which erased() tells them
    for (auto value = values.begin(); value != least; ++value) {
      remove(value->id);
      floor_ = std::max(floor_, value->score);
    }
  }
  return size_ < config_.max_rows;
}

std::int64_t IdMap::entries(std::int64_t start, std::int64_t stop, std::int64_t* rows, std::int64_t* ids,
                            std::int64_t* last_seen, std::int64_t* scores) const {
  std::int64_t count = 0;
  for (std::int64_t row = std::max<std::int64_t>(start, 0); row < std::min(stop, config_.max_rows); ++row) {
    if (!holds(row)) continue;
    const Slot& slot = slot_at(row);
    if (rows != nullptr) rows[count] = row;
    if (ids != nullptr) ids[count] = slot.id;
    if (last_seen != nullptr) last_seen[count] = slot.last_seen;
    if (scores != nullptr) scores[count] = slot.score();
    ++count;
  }
  return count;
}

Status IdMap::restore(std::int64_t n, const std::int64_t* rows, const std::int64_t* ids, const std::int64_t* last_seen,
                      const std::int64_t* scores, std::uint32_t floor) {
  clear();
  removed_ = refused_ = 0;
  mark_saved();
  const auto refuse = [&](const std::string& what, std::int64_t found) {
    clear();
    return Status::invalid(what + ", found " + std::to_string(found));
  };
  for (std::int64_t i = 0; i < n; ++i) {
    if (rows[i] < 0 || rows[i] >= config_.max_rows)
      return refuse("rows: expected 0.." + std::to_string(config_.max_rows - 1), rows[i]);
    if (holds(rows[i])) return refuse("rows: expected each once", rows[i]);
    if (scores[i] < 0 || scores[i] > std::numeric_limits<std::uint32_t>::max())
      return refuse("scores: expected 32 bits", scores[i]);
    const std::uint64_t slot = find(ids[i], home(ids[i]));
    if (slots_.as<Slot>()[slot].row >= 0) return refuse("ids: expected each once", ids[i]);
    place(slot, {ids[i], last_seen[i], Slot::used(static_cast<std::uint32_t>(scores[i]), 0),
                 static_cast<std::int32_t>(rows[i])});
  }
  call_ = 0;
  floor_ = floor;
  mark_saved();
  return {};
}

void IdMap::mark_saved() {
  saved_ = live_;
  erased_.clear();
}

std::vector<std::int64_t> IdMap::freed() const {
  std::vector<std::int64_t> rows;
  for (std::size_t word = 0; word < saved_.size(); ++word)
    for (std::uint64_t rest = saved_[word] & ~live_[word]; rest != 0; rest &= rest - 1)
      rows.push_back(static_cast<std::int64_t>(word * 64) + std::countr_zero(rest));
  return rows;
}

void draw_rows(const std::int64_t* ids, std::int64_t n, std::int64_t dim, std::uint64_t seed, float half_width,
               float* out) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint64_t x = mix_bits(mix_bits(seed + kGolden) + hash_of(ids[i]));
    const RandomRow row{static_cast<std::uint32_t>(x), static_cast<std::uint32_t>(x >> 32)};
    for (std::int64_t d = 0; d < dim; ++d)
      out[i * dim + d] = (2 * uniform(random_bits(row, static_cast<std::uint32_t>(d))) - 1) * half_width;
  }
}

void mark_rows(const std::int64_t* values, std::int64_t n, std::uint8_t* flags, std::int64_t rows) {
  for (std::int64_t i = 0; i < n; ++i)
    if (values[i] >= 0 && values[i] < rows) flags[values[i]] = 1;
}

}  // namespace octavo
