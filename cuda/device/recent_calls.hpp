// What was worked out for recent calls, kept by all that the call depends on. Plain C++, for one thread at a time: use
// one per thread (thread_local).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <utility>

namespace octavo::cuda {

// kPlaces values and never more, in sets of four: a new one takes the place that its set filled longest ago. The hash
// only says in which set to look; a value is found by its whole key (==) or not at all.
template <class Key, class Value, std::size_t kPlaces>
class RecentCalls {
 public:
  // Until the next keep(); null where there is none.
  const Value* find(const Key& key, std::size_t hash) const {
    for (const Place& place : sets_[hash % kSets].places)
      if (place.filled && place.key == key) return &place.value;
    return nullptr;
  }

  // Until the next keep(). `key` must not be there yet.
  const Value& keep(const Key& key, std::size_t hash, Value value) {
    Set& set = sets_[hash % kSets];
    Place& place = set.places[set.next];
    set.next = (set.next + 1) % kWays;
    place.filled = false;  // should the copies throw
    place.key = key;
    place.value = std::move(value);
    place.filled = true;
    return place.value;
  }

 private:
  static constexpr std::size_t kWays = 4, kSets = kPlaces / kWays;
  static_assert(kPlaces % kWays == 0 && kSets > 0);

  struct Place {
    Key key{};
    Value value{};
    bool filled = false;
  };
  struct Set {
    std::array<Place, kWays> places{};
    std::size_t next = 0;
  };
  std::array<Set, kSets> sets_{};
};

inline std::size_t hash_of(std::initializer_list<std::int64_t> values) {
  std::uint64_t hash = 0;
  for (const std::int64_t value : values) {
    hash = (hash ^ static_cast<std::uint64_t>(value)) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  }
  return static_cast<std::size_t>(hash);
}

}  // namespace octavo::cuda
