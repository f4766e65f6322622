#include "octavo/id_map.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "octavo/threading.hpp"

namespace octavo {
namespace {

using Ids = std::vector<std::int64_t>;
constexpr std::int64_t kMin = std::numeric_limits<std::int64_t>::min(), kMax = std::numeric_limits<std::int64_t>::max();

Ids insert(IdMap& map, const Ids& ids, std::int64_t now = 0) {
  Ids rows(ids.size());
  map.lookup_or_insert(ids.data(), static_cast<std::int64_t>(ids.size()), now, rows.data());
  return rows;
}

Ids find(const IdMap& map, const Ids& ids) {
  Ids rows(ids.size());
  map.lookup(ids.data(), static_cast<std::int64_t>(ids.size()), rows.data());
  return rows;
}

Ids ids_of(const IdMap& map) {
  Ids ids(static_cast<std::size_t>(map.size()));
  EXPECT_EQ(map.entries(0, map.config().max_rows, nullptr, ids.data(), nullptr, nullptr), map.size());
  return ids;
}

TEST(IdMap, AnyIdHasARowOfItsOwnAndTheLowestFreeOne) {
  IdMap map({5});
  const Ids ids{0, -1, kMin, kMax, 0, 7};
  EXPECT_EQ(insert(map, ids), (Ids{0, 1, 2, 3, 0, 4}));
  EXPECT_EQ(map.fresh(), (Ids{0, 1, 2, 3, 4}));
  EXPECT_EQ(find(map, {7, 0, 1, kMin, kMax, -1}), (Ids{4, 0, -1, 2, 3, 1}));
  EXPECT_EQ(map.erase(Ids{kMin, 99, -1, -1}.data(), 4), 2);
  EXPECT_EQ(map.size(), 3);
  EXPECT_EQ(find(map, {kMin, -1, kMax}), (Ids{-1, -1, 3}));
  EXPECT_EQ(insert(map, {50, 51}), (Ids{1, 2}));
  EXPECT_EQ(map.fresh(), (Ids{1, 2}));
  EXPECT_EQ(insert(map, {}), Ids{});
}

TEST(IdMap, NeverMoreThanItsRowsAndNoRoomFromTheSameCall) {
  IdMap none({0});
  EXPECT_EQ(insert(none, {1, 2}), (Ids{-1, -1}));
  EXPECT_EQ(none.refused(), 2);
  IdMap map({2});
  EXPECT_EQ(insert(map, {1, 2, 3, 1}), (Ids{0, 1, -1, 0}));
  EXPECT_EQ(map.refused(), 1);
  EXPECT_EQ(insert(map, {3, 2}), (Ids{0, 1}));  // 1 made room, 2 is in the call
  EXPECT_EQ(find(map, {1}), Ids{-1});
}

TEST(IdMap, RoomComesFromTheLeastScoreThenTheOldestThenTheSmallestId) {
  IdMap map({3});
  insert(map, {1}, 4);
  insert(map, {1, 1}, 5);
  insert(map, {3, 2}, 6);
  insert(map, {4}, 7);  // 2 and 3 have score 1 and the same age
  Ids held = ids_of(map);
  std::sort(held.begin(), held.end());
  EXPECT_EQ(held, (Ids{1, 3, 4}));
  insert(map, {5}, 8);  // 3 is older than 4
  held = ids_of(map);
  std::sort(held.begin(), held.end());
  EXPECT_EQ(held, (Ids{1, 4, 5}));
}

TEST(IdMap, FormerFavouritesGo) {
  IdMap map({4});
  for (int i = 0; i < 1000; ++i) insert(map, {1}, i);
  std::int64_t next = 100;
  while (find(map, {1})[0] >= 0) {
    insert(map, {next, next + 1}, 2000 + next);
    insert(map, {next, next + 1}, 2001 + next);
    next += 2;
    ASSERT_LT(next, 1000);
  }
}

TEST(IdMap, AgeIsMeasuredWithoutOverflow) {
  IdMap map({4, 1, 10});
  insert(map, {1}, kMin);
  insert(map, {2}, 0);
  EXPECT_EQ(map.evict(kMin + 10), 0);
  EXPECT_EQ(map.evict(10), 1);
  EXPECT_EQ(find(map, {1, 2}), (Ids{-1, 1}));
  EXPECT_EQ(map.evict(kMax), 1);
  insert(map, {3}, 50);
  insert(map, {3}, 20);  // time going backwards makes nothing younger or older
  EXPECT_EQ(map.evict(60), 0);
  EXPECT_EQ(map.evict(61), 1);
}

TEST(IdMap, AdmissionCountsSightings) {
  IdMap map({100, 3});
  EXPECT_EQ(insert(map, {9, 9}), (Ids{-1, -1}));
  EXPECT_EQ(insert(map, {9, 9, 9}), (Ids{0, 0, 0}));
  IdMap once({100, 2});
  EXPECT_EQ(insert(once, {1, 1, 2, 1}), (Ids{0, 0, -1, 0}));
}

TEST(IdMap, ManyIdsAgainstAModelForAnyNumberOfThreads) {
  const int before = threads();
  std::vector<Ids> results;
  for (const int count : {1, 2, 3}) {
    set_threads(count);
    IdMap map({3000, 2, 40});
    std::mt19937_64 random(7);
    Ids all;
    for (int call = 0; call < 60; ++call) {
      Ids ids(static_cast<std::size_t>(call % 7 == 3 ? 5000 : random() % 900));
      for (std::int64_t& id : ids) {
        const auto drawn = static_cast<std::int64_t>(random());
        id = (drawn & 3) != 0 ? drawn % 2500 : drawn;
      }
      const Ids rows = insert(map, ids, call);
      std::map<std::int64_t, std::int64_t> row_of;
      std::set<std::pair<std::int64_t, std::int64_t>> pairs;
      std::set<std::int64_t> used;
      for (std::size_t i = 0; i < ids.size(); ++i) {
        if (rows[i] < 0) continue;
        ASSERT_LT(rows[i], 3000);
        if (pairs.insert({ids[i], rows[i]}).second) {
          ASSERT_TRUE(used.insert(rows[i]).second);
        }
        row_of[ids[i]] = rows[i];
      }
      for (const auto& [id, row] : row_of) ASSERT_EQ(find(map, {id})[0], row);
      if (call % 5 == 4) all.push_back(map.erase(ids.data(), static_cast<std::int64_t>(ids.size()) / 3));
      if (call % 11 == 10) all.push_back(map.evict(call));
      all.insert(all.end(), rows.begin(), rows.end());
      ASSERT_LE(map.size(), 3000);
      ASSERT_EQ(find(map, ids_of(map)).size(), static_cast<std::size_t>(map.size()));
      for (const std::int64_t row : find(map, ids_of(map))) ASSERT_GE(row, 0);
    }
    EXPECT_GT(map.removed(), 1000);
    results.push_back(all);
  }
  set_threads(before);
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST(IdMap, RestoreIsExactAndRefusesNonsense) {
  IdMap map({40});
  Ids ids(30);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int64_t>(i) * kMax / 31;
  insert(map, ids, 3);
  map.erase(ids.data() + 4, 9);
  Ids rows(21), held(21), seen(21), scores(21);
  ASSERT_EQ(map.entries(0, 40, rows.data(), held.data(), seen.data(), scores.data()), 21);
  IdMap twin({64});
  ASSERT_TRUE(twin.restore(21, rows.data(), held.data(), seen.data(), scores.data(), map.floor()).ok());
  EXPECT_EQ(find(twin, ids), find(map, ids));
  EXPECT_EQ(insert(twin, {-5, -6}, 4), insert(map, {-5, -6}, 4));
  rows[3] = rows[2];
  EXPECT_FALSE(twin.restore(21, rows.data(), held.data(), seen.data(), scores.data(), 0).ok());
  rows[3] = 64;
  EXPECT_FALSE(twin.restore(21, rows.data(), held.data(), seen.data(), scores.data(), 0).ok());
  rows[3] = 63;
  held[5] = held[6];
  EXPECT_FALSE(twin.restore(21, rows.data(), held.data(), seen.data(), scores.data(), 0).ok());
  EXPECT_EQ(twin.size(), 0);
}

TEST(IdMap, TellsWhatIsGoneSinceItWasSaved) {
  IdMap map({4});
  insert(map, {10, 11, 12});
  EXPECT_TRUE(map.freed().empty());
  map.erase(Ids{10}.data(), 1);
  EXPECT_TRUE(map.erased().empty());  // it was never saved
  map.mark_saved();
  map.erase(Ids{11, 12}.data(), 2);
  EXPECT_EQ(map.freed(), (Ids{1, 2}));
  EXPECT_EQ(map.erased(), (Ids{11, 12}));
  EXPECT_EQ(insert(map, {12, 13}), (Ids{0, 1}));
  EXPECT_EQ(map.freed(), Ids{2});
  map.mark_saved();
  EXPECT_TRUE(map.freed().empty());
  EXPECT_TRUE(map.erased().empty());
}

TEST(IdMap, SettingsOutOfRangeAreRefused) {
  EXPECT_TRUE(validate(IdMapConfig{0}).ok());
  EXPECT_FALSE(validate(IdMapConfig{-1}).ok());
  EXPECT_FALSE(validate(IdMapConfig{std::int64_t{1} << 31}).ok());
  EXPECT_FALSE(validate(IdMapConfig{1, 0}).ok());
  EXPECT_FALSE(validate(IdMapConfig{1, 256}).ok());
  EXPECT_FALSE(validate(IdMapConfig{1, 1, -1}).ok());
}

TEST(DrawRows, DependOnSeedIdAndColumnAlone) {
  const Ids ids{3, kMin, 3};
  std::vector<float> rows(3 * 5), other(3 * 5);
  draw_rows(ids.data(), 3, 5, 1, 0.5f, rows.data());
  draw_rows(ids.data(), 3, 5, 2, 0.5f, other.data());
  for (std::size_t d = 0; d < 5; ++d) {
    EXPECT_EQ(rows[d], rows[10 + d]);
    EXPECT_NE(rows[d], rows[5 + d]);
    EXPECT_NE(rows[d], other[d]);
    EXPECT_LE(std::abs(rows[d]), 0.5f);
  }
}

}  // namespace
}  // namespace octavo
