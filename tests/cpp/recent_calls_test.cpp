// What is kept of recent calls: a value is found by its whole key or not at all.
#include "device/recent_calls.hpp"

#include <gtest/gtest.h>

#include <string>

namespace octavo::cuda {
namespace {

struct Key {
  int a = 0, b = 0;
  bool operator==(const Key&) const = default;
};

TEST(RecentCalls, FindsWhatWasKept) {
  RecentCalls<Key, std::string, 8> calls;
  EXPECT_EQ(calls.find({0, 0}, 0), nullptr);  // a place that was never filled has such a key
  EXPECT_EQ(calls.keep({0, 0}, 0, "zeros"), "zeros");
  calls.keep({1, 2}, 5, "one");
  ASSERT_NE(calls.find({0, 0}, 0), nullptr);
  EXPECT_EQ(*calls.find({0, 0}, 0), "zeros");
  EXPECT_EQ(*calls.find({1, 2}, 5), "one");
  EXPECT_EQ(calls.find({1, 3}, 5), nullptr);
  EXPECT_EQ(calls.find({1, 2}, 4), nullptr);  // another set
}

TEST(RecentCalls, EqualHashesAreToldApartByTheKey) {
  RecentCalls<Key, int, 8> calls;
  for (int i = 0; i < 4; ++i) calls.keep({i, 7}, 3, 10 * i);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(*calls.find({i, 7}, 3), 10 * i);
  EXPECT_EQ(calls.find({4, 7}, 3), nullptr);
}

TEST(RecentCalls, TheOldestOfASetMakesPlace) {
  RecentCalls<Key, int, 8> calls;
  calls.keep({100, 0}, 1, -1);  // of the other set: it stays
  for (int i = 0; i < 50; ++i) {
    calls.keep({i, 0}, 2, i);
    for (int j = 0; j <= i; ++j) {
      const int* found = calls.find({j, 0}, 2);
      if (j > i - 4)
        EXPECT_EQ(*found, j);
      else
        EXPECT_EQ(found, nullptr);
    }
  }
  EXPECT_EQ(*calls.find({100, 0}, 1), -1);
}

// Whatever was kept in whatever order: what is found is what was kept under that key.
TEST(RecentCalls, NeverAnotherKeysValue) {
  RecentCalls<Key, std::int64_t, 16> calls;
  std::uint64_t state = 1;
  int hits = 0;
  for (int turn = 0; turn < 100000; ++turn) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const Key key{static_cast<int>(state >> 33) % 12, static_cast<int>(state >> 50) % 3};
    const std::size_t hash = hash_of({key.a});  // says nothing of b
    if (const std::int64_t* found = calls.find(key, hash)) {
      ASSERT_EQ(*found, 100 * key.a + key.b);
      ++hits;
    } else {
      calls.keep(key, hash, 100 * key.a + key.b);
    }
  }
  EXPECT_GT(hits, 10000);
}

TEST(RecentCalls, HashesSpread) {
  std::array<int, 16> counts{};
  for (std::int64_t i = 0; i < 1600; ++i) ++counts[hash_of({i * 512, 1024}) % 16];
  for (const int count : counts) EXPECT_GT(count, 50);
}

}  // namespace
}  // namespace octavo::cuda
