#include "octavo/threading.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace octavo {
namespace {

TEST(Threading, PartitionCoversEverythingOnceAtTheGrain) {
  for (const std::int64_t n : {0, 1, 5, 6, 7, 100, 1001})
    for (const int count : {1, 2, 3, 7})
      for (const std::int64_t grain : {1, 6, 64}) {
        std::int64_t next = 0;
        for (int thread = 0; thread < count; ++thread) {
          const Range range = partition(n, thread, count, grain);
          EXPECT_EQ(range.begin, next);
          EXPECT_TRUE(range.end == n || range.end % grain == 0);
          next = range.end;
        }
        EXPECT_EQ(next, n);
      }
}

TEST(Threading, EveryPartRunsOnce) {
  for (const int count : {1, 2, 3, 8}) {
    std::vector<std::atomic<int>> calls(static_cast<std::size_t>(count));
    for (int repeat = 0; repeat < 50; ++repeat)
      parallel_region(count, [&](int thread, int of) {
        EXPECT_EQ(of, count);
        ++calls[static_cast<std::size_t>(thread)];
      });
    for (const auto& c : calls) EXPECT_EQ(c, 50);
  }
}

TEST(Threading, NestedRegionsRunEveryPartSerially) {
  std::atomic<int> parts{0};
  parallel_region(2, [&](int, int) {
    EXPECT_EQ(threads(), 1);
    const std::thread::id outer = std::this_thread::get_id();
    parallel_region(3, [&](int, int) {
      EXPECT_EQ(std::this_thread::get_id(), outer);
      ++parts;
    });
  });
  EXPECT_EQ(parts, 6);
}

TEST(Threading, CallersFromSeveralThreadsAllFinish) {
  std::atomic<int> parts{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i)
    callers.emplace_back([&] {
      for (int repeat = 0; repeat < 20; ++repeat) parallel_region(2, [&](int, int) { ++parts; });
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(parts, 4 * 20 * 2);
}

TEST(Threading, SetThreadsIsHonoured) {
  const int before = threads();
  set_threads(3);
  EXPECT_EQ(threads(), 3);
  set_threads(before);
  EXPECT_FALSE(borrows_openmp());  // no torch in this process
}

}  // namespace
}  // namespace octavo
