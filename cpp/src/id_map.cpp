#include "octavo/id_map.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>

#include "cpu/bag_random.hpp"

namespace octavo {
namespace {

constexpr std::int64_t kBlock = 32;           // ids whose cache misses overlap
constexpr std::size_t kAhead = 16;            // new ids whose slots are on their way
constexpr std::int64_t kParallelFrom = 4096;  // ids: fewer cost less than a fork
constexpr std::int64_t kLine = 64;

std::uint64_t hash_of(std::int64_t id) { return mix_bits(static_cast<std::uint64_t>(id) + kGolden); }
std::uint32_t tag_of(std::int64_t id) { return static_cast<std::uint32_t>(hash_of(id) >> 32); }

bool older(std::int64_t last_seen, std::int64_t now, std::int64_t max_age) {
  if (max_age == 0 || last_seen >= now) return false;
  return static_cast<std::uint64_t>(now) - static_cast<std::uint64_t>(last_seen) > static_cast<std::uint64_t>(max_age);
}

template <class Body>
void each_bit(const std::vector<std::uint64_t>& bits, Body&& body) {
  for (std::size_t word = 0; word < bits.size(); ++word)
    for (std::uint64_t rest = bits[word]; rest != 0; rest &= rest - 1)
      body(static_cast<std::int64_t>(word * 64) + std::countr_zero(rest));
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
  const std::uint64_t slots = std::bit_ceil(std::max<std::uint64_t>(8, rows + rows / 3 + 1));  // at most 3/4 full
  mask_ = slots - 1;
  shift_ = 32 - std::countr_zero(slots);
  slots_ = AlignedBuffer(slots * sizeof(Slot));
  records_ = AlignedBuffer(rows * sizeof(Record));
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
}

std::int64_t IdMap::bytes() const {
  return static_cast<std::int64_t>(slots_.size() + records_.size() + sightings_.counters().size() +
                                   (live_.size() + saved_.size()) * sizeof(std::uint64_t));
}

// The slot of `id`, or the empty one where its probing ends, from `slot` on.
std::uint64_t IdMap::find(std::int64_t id, std::uint32_t tag, std::uint64_t slot) const {
  const Slot* slots = slots_.as<Slot>();
  const Record* records = records_.as<Record>();
  for (;; slot = (slot + 1) & mask_) {
    if (slots[slot].row < 0 || (slots[slot].tag == tag && records[slots[slot].row].id == id)) return slot;
  }
}

// Calls found(i, slot) for each id, the slot it is in or an empty one. Cache misses overlap: a block's slots are
// fetched while the block before is looked at, then its records.
template <class Found>
void IdMap::each_slot(const std::int64_t* ids, Range mine, Found&& found) const {
  const Slot* slots = slots_.as<Slot>();
  const Record* records = records_.as<Record>();
  std::uint32_t tags[2][kBlock];
  std::uint64_t at[kBlock];
  const auto fetch = [&](std::int64_t begin, std::uint32_t* into) {
    for (std::int64_t i = 0; i < std::min(kBlock, mine.end - begin); ++i) {
      into[i] = tag_of(ids[begin + i]);
      __builtin_prefetch(slots + home(into[i]));
    }
  };
  fetch(mine.begin, tags[0]);
  int now = 0;
  for (std::int64_t begin = mine.begin; begin < mine.end; begin += kBlock, now ^= 1) {
    const std::int64_t size = std::min(kBlock, mine.end - begin);
    const std::uint32_t* tag = tags[now];
    fetch(begin + kBlock, tags[now ^ 1]);
    for (std::int64_t i = 0; i < size; ++i) {
      std::uint64_t slot = home(tag[i]);
      while (slots[slot].row >= 0 && slots[slot].tag != tag[i]) slot = (slot + 1) & mask_;
      at[i] = slot;
      if (slots[slot].row >= 0) __builtin_prefetch(records + slots[slot].row, 1);
    }
    for (std::int64_t i = 0; i < size; ++i) found(begin + i, find(ids[begin + i], tag[i], at[i]));
  }
}

void IdMap::lookup(const std::int64_t* ids, std::int64_t n, std::int64_t* rows) const {
  parallel_region(n < kParallelFrom ? 1 : threads(), [&](int thread, int of) {
    const Slot* slots = slots_.as<Slot>();
    each_slot(ids, partition(n, thread, of, kBlock),
              [&](std::int64_t i, std::uint64_t slot) { rows[i] = slots[slot].row; });
  });
}

// Once a call. Threads that meet here read the same old word or the new one, and write the same.
void IdMap::touch(Record& record, std::int64_t now) const {
  const std::atomic_ref<std::uint64_t> use(record.use);
  const std::uint64_t before = use.load(std::memory_order_relaxed);
  if (static_cast<std::uint32_t>(before) == call_) return;
  const std::uint32_t score = std::max(static_cast<std::uint32_t>(before >> 32), floor_);
  const std::atomic_ref<std::int64_t> last_seen(record.last_seen);
  last_seen.store(std::max(last_seen.load(std::memory_order_relaxed), now), std::memory_order_relaxed);
  use.store(Record::used(std::min(score + 1, floor_ + kSpread), call_), std::memory_order_relaxed);
}

void IdMap::lookup_and_touch(const std::int64_t* ids, std::int64_t n, std::int64_t now, std::int64_t* rows) {
  const int count = n < kParallelFrom ? 1 : threads();
  missing_.resize(static_cast<std::size_t>(count));
  parallel_region(count, [&](int thread, int of) {
    const Slot* slots = slots_.as<Slot>();
    Record* records = records_.as<Record>();
    std::vector<std::int64_t>& missing = missing_[static_cast<std::size_t>(thread)];
    missing.clear();
    each_slot(ids, partition(n, thread, of, kBlock), [&](std::int64_t i, std::uint64_t slot) {
      rows[i] = slots[slot].row;
      if (rows[i] < 0) return missing.push_back(i);
      touch(records[rows[i]], now);
    });
  });
}

void IdMap::lookup_or_insert(const std::int64_t* ids, std::int64_t n, std::int64_t now, std::int64_t* rows) {
  fresh_.clear();
  if (++call_ == 0) {  // wrapped around: no old record may look like one of this call
    each_bit(live_, [&](std::int64_t row) {
      Record& record = records_.as<Record>()[row];
      record.use = Record::used(record.score(), 0);
    });
    call_ = 1;
  }
  lookup_and_touch(ids, n, now, rows);
  std::vector<std::int64_t>& missing = missing_[0];
  for (std::size_t t = 1; t < missing_.size(); ++t)
    missing.insert(missing.end(), missing_[t].begin(), missing_[t].end());
  const Slot* slots = slots_.as<Slot>();
  bool full = false;
  for (std::size_t m = 0; m < missing.size(); ++m) {
    if (m + kAhead < missing.size()) __builtin_prefetch(slots + home(tag_of(ids[missing[m + kAhead]])), 1);
    const std::int64_t i = missing[m];
    const std::uint64_t hash = hash_of(ids[i]);
    const auto tag = static_cast<std::uint32_t>(hash >> 32);
    rows[i] = slots[find(ids[i], tag, home(tag))].row;
    if (rows[i] >= 0) continue;  // inserted earlier in this call
    if (config_.admit_after > 1 && sightings_.add(hash) < config_.admit_after) continue;
    if (size_ == config_.max_rows && (full || !make_room(now))) {
      full = true;
      ++refused_;
      continue;
    }
    rows[i] = insert(ids[i], tag, now);
    fresh_.push_back(rows[i]);
  }
  if (config_.admit_after == 1 || fresh_.empty()) return;
  for (const std::int64_t i : missing)
    if (rows[i] < 0) rows[i] = slots[find(ids[i], tag_of(ids[i]), home(tag_of(ids[i])))].row;
}

std::int64_t IdMap::insert(std::int64_t id, std::uint32_t tag, std::int64_t now) {
  std::size_t word = static_cast<std::size_t>(lowest_) >> 6;
  while (live_[word] == ~std::uint64_t{0}) ++word;
  const std::int64_t row = static_cast<std::int64_t>(word * 64) + std::countr_one(live_[word]);
  place(row, {id, now, Record::used(floor_ + 1, call_)}, tag);
  lowest_ = row + 1;
  return row;
}

void IdMap::place(std::int64_t row, const Record& record, std::uint32_t tag) {
  Slot* slots = slots_.as<Slot>();
  std::uint64_t slot = home(tag);
  while (slots[slot].row >= 0) slot = (slot + 1) & mask_;
  slots[slot] = {tag, static_cast<std::int32_t>(row)};
  records_.as<Record>()[row] = record;
  live_[static_cast<std::size_t>(row) >> 6] |= std::uint64_t{1} << (row & 63);
  ++size_;
}

// Closes the gap, so that probing needs no tombstones.
void IdMap::free_slot(std::uint64_t hole) {
  Slot* slots = slots_.as<Slot>();
  for (std::uint64_t next = (hole + 1) & mask_; slots[next].row >= 0; next = (next + 1) & mask_) {
    if (((next - home(slots[next].tag)) & mask_) < ((next - hole) & mask_)) continue;  // its home is behind the hole
    slots[hole] = slots[next];
    hole = next;
  }
  slots[hole].row = -1;
}

bool IdMap::remove(std::int64_t id) {
  const std::uint32_t tag = tag_of(id);
  const std::uint64_t slot = find(id, tag, home(tag));
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
  const Record* records = records_.as<Record>();
  std::vector<std::int64_t> old;
  each_bit(live_, [&](std::int64_t row) {
    const Record& record = records[row];
    if (older(record.last_seen, now, config_.max_age) && !(pinned && record.call() == call_)) old.push_back(record.id);
  });
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
    const Record* records = records_.as<Record>();
    std::vector<Value> values;
    values.reserve(static_cast<std::size_t>(size_));
    each_bit(live_, [&](std::int64_t row) {
      const Record& record = records[row];
      if (record.call() != call_) values.push_back({std::max(record.score(), floor_), record.last_seen, record.id});
    });
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
  const Record* records = records_.as<Record>();
  std::int64_t count = 0;
  for (std::int64_t row = std::max<std::int64_t>(start, 0); row < std::min(stop, config_.max_rows); ++row) {
    if (!holds(row)) continue;
    const Record& record = records[row];
    if (rows != nullptr) rows[count] = row;
    if (ids != nullptr) ids[count] = record.id;
    if (last_seen != nullptr) last_seen[count] = record.last_seen;
    if (scores != nullptr) scores[count] = record.score();
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
    const std::uint32_t tag = tag_of(ids[i]);
    if (slots_.as<Slot>()[find(ids[i], tag, home(tag))].row >= 0) return refuse("ids: expected each once", ids[i]);
    place(rows[i], {ids[i], last_seen[i], Record::used(static_cast<std::uint32_t>(scores[i]), 0)}, tag);
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
