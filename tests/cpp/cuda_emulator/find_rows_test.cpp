// Ids to rows on a device, against the map itself.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels.hpp"
#include "octavo/id_map.hpp"
#include "orders.hpp"

namespace octavo::testing {
namespace {

using Ints = std::vector<std::int64_t>;

// A copy of a map's slots, kept up to date as a device's is.
struct Copy {
  std::vector<IdSlot> slots;

  explicit Copy(const IdMap& map) : slots(static_cast<std::size_t>(map.slots())) {}

  // Returns how many slots it took.
  std::size_t refresh(IdMap& map) {
    std::size_t taken = slots.size();
    if (map.all_changed()) {
      map.copy_slots(slots.data());
    } else {
      std::vector<IdSlot> changed(taken = map.changed().size());
      map.copy_slots(map.changed().data(), static_cast<std::int64_t>(taken), changed.data());
      for (std::size_t i = 0; i < taken; ++i) slots[static_cast<std::size_t>(map.changed()[i])] = changed[i];
    }
    map.mark_copied();
    return taken;
  }
  IdSlots view() const { return {slots.data(), static_cast<std::int64_t>(slots.size())}; }
};

void admit(IdMap& map, const Ints& ids, std::int64_t now) {
  Ints rows(ids.size());
  map.lookup_or_insert(ids.data(), static_cast<std::int64_t>(ids.size()), now, rows.data());
}

// Ids small and large, many of them met again.
Ints some_ids(std::mt19937_64& random, std::size_t count, std::int64_t kinds) {
  Ints ids(count);
  for (std::int64_t& id : ids) {
    id = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(kinds)) - kinds / 2;
    if (random() % 2 == 0) id = static_cast<std::int64_t>(static_cast<std::uint64_t>(id) * 0x123456789abcdefull);
  }
  return ids;
}

Ints found(const std::vector<IdSlots>& maps, std::int64_t batch, const Ints& values, const Ints& offsets) {
  Ints rows(values.size(), 77);
  const auto tables = static_cast<std::int64_t>(maps.size());
  const BagIndices indices{batch, tables, values.data(), static_cast<std::int64_t>(values.size()), offsets.data()};
  const Status status = cuda::find_rows({maps.data(), indices, rows.data()});
  EXPECT_TRUE(status.ok()) << status.message();
  return rows;
}

// Through admissions, evictions and erasures, by whole copies and by what changed.
TEST(CudaFindRows, EqualsTheMapWhateverHappensToIt) {
  in_every_order([] {
    std::mt19937_64 random(5);
    for (const std::int64_t room : {0, 1, 7, 300}) {
      IdMap map({room, 1, 15});
      Copy copy(map);
      std::size_t partly = 0;
      for (std::int64_t now = 0; now < 24; ++now) {
        admit(map, some_ids(random, 1 + random() % 12, 4 * room + 2), now);
        if (now % 7 == 3) {
          const Ints gone = some_ids(random, 9, 4 * room + 2);
          map.erase(gone.data(), 9);
        }
        if (now % 5 == 1) continue;  // several calls go into one copy
        partly += copy.refresh(map) < copy.slots.size();
        EXPECT_FALSE(map.copy_is_old());
        Ints ids = some_ids(random, 333, 4 * room + 2), want(ids.size());
        ids[0] = std::numeric_limits<std::int64_t>::min();
        ids[1] = std::numeric_limits<std::int64_t>::max();
        map.lookup(ids.data(), static_cast<std::int64_t>(ids.size()), want.data());
        for (std::int64_t& row : want) ++row;
        ASSERT_EQ(found({copy.view()}, 1, ids, {0, 333}), want) << "room " << room << " at " << now;
      }
      if (room == 300) {
        EXPECT_GT(partly, 10);
      }
    }
  });
}

TEST(CudaFindRows, FixedTablesKeepTheirValuesAndEmptyOnesTakeNone) {
  in_every_order([] {
    IdMap first({4}), last({4});
    admit(first, {50, 60}, 0);
    admit(last, {60, -1, 50}, 0);
    Copy a(first), b(last);
    a.refresh(first);
    b.refresh(last);
    const std::vector<IdSlots> maps{a.view(), {}, {}, b.view(), a.view()};
    // Two bags a table: 3 lookups, none, 3, 2, none; the last value is in no bag.
    const Ints offsets{0, 1, 3, 3, 3, 3, 6, 8, 8, 8, 8}, values{60, 7, 50, -5, 60, 1 << 30, 50, 60, 50};
    EXPECT_EQ(found(maps, 2, values, offsets), (Ints{2, 0, 1, -5, 60, 1 << 30, 3, 1, -1}));
    EXPECT_EQ(found(maps, 0, {60}, {0}), (Ints{-1}));
    EXPECT_EQ(found(maps, 2, {}, Ints(11, 0)), Ints{});
  });
}

TEST(CudaFindRows, MoreTablesThanALaunchTakesAndOffsetsThatMakeNoSense) {
  IdMap map({8});
  admit(map, {3, 4, 5}, 0);
  Copy copy(map);
  copy.refresh(map);
  std::vector<IdSlots> maps(1100);
  for (std::size_t t = 0; t < maps.size(); t += 3) maps[t] = copy.view();
  Ints values, offsets{0}, want;
  for (std::size_t t = 0; t < maps.size(); ++t) {
    for (const std::int64_t id : {5, 9}) {
      values.push_back(id);
      want.push_back(t % 3 != 0 ? id : id == 5 ? 3 : 0);
    }
    offsets.push_back(static_cast<std::int64_t>(values.size()));
  }
  EXPECT_EQ(found(maps, 1, values, offsets), want);
  // No access outside, which the sanitizer would see, and no value that was not written.
  for (const std::int64_t wrong : {std::int64_t{-1} << 40, std::int64_t{-1}, std::int64_t{1} << 40}) {
    Ints bad = offsets;
    bad[700] = wrong;
    bad.back() = wrong;
    for (const std::int64_t row : found(maps, 1, values, bad)) EXPECT_NE(row, 77);
  }
}

}  // namespace
}  // namespace octavo::testing
