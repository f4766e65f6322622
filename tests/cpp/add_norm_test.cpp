// add_norm: every kernel of the table against FP64, on sizes and strides whose memory ends where the last element does.
#include "octavo/add_norm.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "batch_operand.hpp"
#include "levels.hpp"
#include "octavo/registry.hpp"

namespace octavo {
namespace {

using testing::Operand;

std::vector<double> layer_norm(std::vector<double> row) {
  double mean = 0, squares = 0;
  for (const double v : row) mean += v / static_cast<double>(row.size());
  for (const double v : row) squares += (v - mean) * (v - mean) / static_cast<double>(row.size());
  for (double& v : row) v = (v - mean) / std::sqrt(squares + 1e-5);
  return row;
}

void check(const KernelInfo& kernel, const std::vector<std::int64_t>& counts, std::int64_t depth, bool across) {
  constexpr std::int64_t kBatch = 3;
  std::vector<Operand> parts;
  std::vector<BatchView> views;
  std::int64_t tokens = 0;
  for (const std::int64_t count : counts) {
    parts.emplace_back(kBatch, count, depth, across, static_cast<unsigned>(tokens + 1));
    tokens += count;
  }
  for (const Operand& part : parts) views.push_back(part.view);
  const Operand residual(kBatch, tokens, depth, !across, 99);
  std::vector<float> out(static_cast<std::size_t>(kBatch * tokens * depth)), out_transposed(out.size());
  AddNormArgs args;
  args.batch = kBatch;
  args.parts = views.data();
  args.part_count = static_cast<int>(views.size());
  args.residual = residual.view;
  args.norm = NormKind::layer;
  args.out = out.data();
  args.out_transposed = out_transposed.data();
  const Status status = kernel.run.add_norm(args);
  ASSERT_TRUE(status.ok()) << status.message();
  for (std::int64_t b = 0; b < kBatch; ++b)
    for (std::int64_t part = 0, token = 0; part < static_cast<std::int64_t>(counts.size()); ++part)
      for (std::int64_t i = 0; i < counts[static_cast<std::size_t>(part)]; ++i, ++token) {
        std::vector<double> row;
        for (std::int64_t k = 0; k < depth; ++k)
          row.push_back(parts[static_cast<std::size_t>(part)].at(b, i, k) + residual.at(b, token, k));
        row = layer_norm(row);
        for (std::int64_t k = 0; k < depth; ++k) {
          const float found = out[static_cast<std::size_t>((b * tokens + token) * depth + k)];
          ASSERT_NEAR(found, row[static_cast<std::size_t>(k)], 1e-5) << b << " " << token << " " << k;
          ASSERT_EQ(found, out_transposed[static_cast<std::size_t>((b * depth + k) * tokens + token)]);
        }
      }
}

TEST(AddNorm, EveryKernelAgreesWithTheDefinition) {
  testing::at_every_level([] {
    for (const KernelInfo* kernel : Registry::instance().all()) {
      if (kernel->op != Op::add_norm || !kernel->is_supported()) continue;
      SCOPED_TRACE(kernel->name);
      for (const bool across : {false, true})
        for (const std::int64_t depth : {2, 7, 32}) {
          check(*kernel, {1}, depth, across);
          check(*kernel, {16, 16}, depth, across);
          check(*kernel, {5, 1, 18, 9}, depth, across);
        }
    }
  });
}

TEST(AddNorm, WhatDoesNotFitIsNamed) {
  const Operand x(2, 3, 4, false, 1), y(2, 3, 5, false, 2);
  const BatchView views[] = {x.view, y.view};
  AddNormArgs args;
  args.batch = 2;
  args.parts = views;
  EXPECT_NE(validate(args).message().find("parts is empty"), std::string::npos);
  args.part_count = 2;
  EXPECT_NE(validate(args).message().find("a part is [3, 5] a sample; expected [3, 4]"), std::string::npos);
  args.part_count = 1;
  args.residual = y.view;
  EXPECT_NE(validate(args).message().find("residual is [3, 5]"), std::string::npos);
  args.residual = x.view;
  args.residual.row_stride = args.residual.col_stride = 2;
  EXPECT_NE(validate(args).message().find("residual must be contiguous"), std::string::npos);
}

}  // namespace
}  // namespace octavo
