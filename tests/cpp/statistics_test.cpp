// Statistics on every instruction set against plain FP64 sums, whole, cut and merged; sizes of 0 and around a panel.
#include "octavo/statistics.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "levels.hpp"

namespace octavo {
namespace {

struct State {
  State(std::int64_t k, std::int64_t rank)
      : counts(kMomentCounts),
        tail_counts(kTailCounts),
        row_amax(kAmaxBins),
        shares(2 * kShareBins),
        mean(static_cast<std::size_t>(k)),
        scatter(static_cast<std::size_t>(k * (rank > 0 ? rank : k))),
        diagonal(static_cast<std::size_t>(rank > 0 ? k : 0)),
        sums(kTailSums),
        moments{k, rank, counts.data(), mean.data(), scatter.data(), diagonal.data()},
        tails{tail_counts.data(), sums.data(), row_amax.data(), shares.data()} {}

  std::vector<std::int64_t> counts, tail_counts, row_amax, shares;
  std::vector<double> mean, scatter, diagonal, sums;
  Moments moments;
  Tails tails;
};

std::vector<float> random_rows(std::int64_t m, std::int64_t k) {
  std::mt19937 generator(static_cast<unsigned>(m * 1000 + k));
  std::normal_distribution<float> normal(3.0f, 2.0f);
  std::vector<float> x(static_cast<std::size_t>(m * k));
  for (float& v : x) v = normal(generator);
  return x;
}

MatrixView rows_of(std::vector<float>& x, std::int64_t from, std::int64_t count, std::int64_t k) {
  return {x.data() + from * k, count, k, k, DType::f32};
}

// sum over rows of (x_i - mean_i)(x_j - mean_j)
double scatter_at(const std::vector<float>& x, std::int64_t k, const State& state, std::int64_t i, std::int64_t j) {
  double sum = 0;
  for (std::size_t r = 0; r < x.size() / static_cast<std::size_t>(k); ++r) {
    const float* row = x.data() + r * static_cast<std::size_t>(k);
    sum += (static_cast<double>(row[i]) - state.mean[static_cast<std::size_t>(i)]) *
           (static_cast<double>(row[j]) - state.mean[static_cast<std::size_t>(j)]);
  }
  return sum;
}

TEST(Statistics, MomentsAreThoseOfTwoPasses) {
  testing::at_every_level([] {
    for (const std::int64_t k : {1, 7, 31, 33, 65})
      for (const std::int64_t m : {1, 3, 530, 1100}) {
        std::vector<float> x = random_rows(m, k);
        State whole(k, 0), first(k, 0), second(k, 0);
        ASSERT_TRUE(observe(rows_of(x, 0, m, k), whole.moments, &whole.tails).ok());
        ASSERT_TRUE(observe(rows_of(x, 0, m / 3, k), first.moments, &first.tails).ok());
        ASSERT_TRUE(observe(rows_of(x, m / 3, m - m / 3, k), second.moments, &second.tails).ok());
        ASSERT_TRUE(merge(second.moments, first.moments).ok());
        merge(second.tails, first.tails);
        EXPECT_EQ(whole.counts, first.counts);
        EXPECT_EQ(whole.row_amax, first.row_amax);
        EXPECT_EQ(whole.shares, first.shares);
        EXPECT_NEAR(whole.sums[kFourth], first.sums[kFourth], 1e-9 * std::abs(whole.sums[kFourth]) + 1e-12);
        for (std::int64_t i = 0; i < k; ++i)
          for (std::int64_t j = i; j < k; ++j) {
            const double expected = scatter_at(x, k, whole, i, j), bound = 1e-5 * 4.0 * static_cast<double>(m);
            EXPECT_NEAR(whole.scatter[static_cast<std::size_t>(i * k + j)], expected, bound);
            EXPECT_NEAR(first.scatter[static_cast<std::size_t>(i * k + j)], expected, bound);
          }
      }
  });
}

TEST(Statistics, ASketchIsTheScatterTimesSigns) {
  testing::at_every_level([] {
    for (const std::int64_t k : {1, 33, 70})
      for (const std::int64_t rank : {1, 5, 40}) {
        const std::int64_t m = 523;
        std::vector<float> x = random_rows(m, k), signs(static_cast<std::size_t>(k * rank));
        State full(k, 0), first(k, rank), second(k, rank);
        ASSERT_TRUE(observe(rows_of(x, 0, m, k), full.moments, nullptr).ok());
        ASSERT_TRUE(observe(rows_of(x, 0, 6, k), first.moments, nullptr).ok());
        ASSERT_TRUE(observe(rows_of(x, 6, m - 6, k), second.moments, nullptr).ok());
        ASSERT_TRUE(merge(second.moments, first.moments).ok());
        sketch_signs(k, rank, signs.data());
        for (std::int64_t i = 0; i < k; ++i) {
          EXPECT_NEAR(first.diagonal[static_cast<std::size_t>(i)], scatter_at(x, k, full, i, i), 0.1);
          for (std::int64_t c = 0; c < rank; ++c) {
            double expected = 0;
            for (std::int64_t j = 0; j < k; ++j)
              expected += full.scatter[static_cast<std::size_t>(std::min(i, j) * k + std::max(i, j))] *
                          static_cast<double>(signs[static_cast<std::size_t>(j * rank + c)]);
            EXPECT_NEAR(first.scatter[static_cast<std::size_t>(i * rank + c)], expected, 0.1);
          }
        }
      }
  });
}

TEST(Statistics, NothingAndWhatIsNotFiniteChangesNothing) {
  std::vector<float> x = {std::numeric_limits<float>::quiet_NaN(), 1.0f, std::numeric_limits<float>::infinity(), 1.0f};
  State state(2, 0), none(0, 0);
  ASSERT_TRUE(observe(rows_of(x, 0, 2, 2), state.moments, &state.tails).ok());
  ASSERT_TRUE(observe(rows_of(x, 0, 0, 2), state.moments, &state.tails).ok());
  ASSERT_TRUE(observe(rows_of(x, 0, 4, 0), none.moments, &none.tails).ok());
  EXPECT_EQ(state.counts, (std::vector<std::int64_t>{0, 1, 1}));
  EXPECT_EQ(state.mean, (std::vector<double>{0, 0}));
  EXPECT_EQ(none.counts[kRows], 4);
  EXPECT_FALSE(observe(rows_of(x, 0, 1, 3), state.moments, nullptr).ok());
  EXPECT_FALSE(merge(none.moments, state.moments).ok());
}

}  // namespace
}  // namespace octavo
