// pairwise_dots: every kernel of the table against FP64, on odd sizes, strides and triangles, at every level.
#include "octavo/pairwise.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "batch_operand.hpp"
#include "levels.hpp"
#include "octavo/registry.hpp"

namespace octavo {
namespace {

using testing::Operand;

struct Sizes {
  std::int64_t batch, rows, columns, depth;
};

bool keeps(Pairs pairs, std::int64_t i, std::int64_t j) {
  return pairs == Pairs::all || (pairs == Pairs::lower ? j < i : j > i);
}

void check(const KernelInfo& kernel, const Sizes& s, bool across, Pairs pairs) {
  const Operand x(s.batch, s.rows, s.depth, across, 1);
  const Operand y = pairs == Pairs::all ? Operand(s.batch, s.columns, s.depth, across, 2) : x;
  const std::int64_t columns = pairs == Pairs::all ? s.columns : s.rows;
  const std::int64_t per_sample = pairs == Pairs::all ? s.rows * columns : s.rows * (s.rows - 1) / 2;
  std::vector<float> out(static_cast<std::size_t>(s.batch * per_sample), -1.0f);
  PairwiseArgs args;
  args.batch = s.batch;
  args.x = x.view;
  args.y = pairs == Pairs::all ? y.view : x.view;
  args.pairs = pairs;
  args.out = out.data();
  args.out_batch_stride = per_sample;
  args.out_row_stride = columns;
  const Status status = kernel.run.pairwise_dots(args);
  ASSERT_TRUE(status.ok()) << status.message();
  std::size_t at = 0;
  for (std::int64_t b = 0; b < s.batch; ++b)
    for (std::int64_t i = 0; i < s.rows; ++i)
      for (std::int64_t j = 0; j < columns; ++j) {
        if (!keeps(pairs, i, j)) continue;
        double expected = 0;
        for (std::int64_t k = 0; k < s.depth; ++k) expected += x.at(b, i, k) * y.at(b, j, k);
        ASSERT_EQ(out[at++], static_cast<float>(expected)) << b << " " << i << " " << j;
      }
}

TEST(Pairwise, EveryKernelIsExactOnSmallIntegers) {
  testing::at_every_level([] {
    for (const KernelInfo* kernel : Registry::instance().all()) {
      if (kernel->op != Op::pairwise_dots || !kernel->is_supported()) continue;
      SCOPED_TRACE(kernel->name);
      for (const Sizes& s : {Sizes{1, 1, 1, 1}, {2, 3, 20, 7}, {3, 27, 27, 64}, {1, 41, 17, 33}, {2, 5, 4, 0}})
        for (const bool across : {false, true})
          for (const Pairs pairs : {Pairs::all, Pairs::lower, Pairs::upper}) check(*kernel, s, across, pairs);
    }
  });
}

TEST(Pairwise, WhatDoesNotFitIsNamed) {
  const Operand x(2, 3, 4, false, 1), y(2, 3, 5, false, 2);
  PairwiseArgs args;
  args.batch = 2;
  args.x = x.view;
  args.y = y.view;
  EXPECT_NE(validate(args).message().find("x has rows of 4 and y of 5"), std::string::npos);
  args.y = x.view;
  args.y.row_stride = args.y.col_stride = 2;
  EXPECT_NE(validate(args).message().find("y must be contiguous"), std::string::npos);
}

}  // namespace
}  // namespace octavo
