// Where an id's probing starts among the slots of its map: the same on a CPU and, in a copy of the slots, on a device.
//
// In an anonymous namespace, as bag_random.hpp.
#pragma once

#include "cpu/bag_random.hpp"

namespace octavo {
namespace {

constexpr std::uint64_t hash_of(std::int64_t id) { return mix_bits(static_cast<std::uint64_t>(id) + kGolden); }

// Upper half of the hash, scaled to the number of pairs of slots: the first of the pair, which share a cache line.
constexpr std::uint64_t home_slot(std::int64_t id, std::uint64_t slots) {
  return ((hash_of(id) >> 32) * (slots / 2) >> 32) * 2;
}

}  // namespace
}  // namespace octavo
