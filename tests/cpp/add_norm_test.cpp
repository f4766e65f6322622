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

// Against differences of a sum of g * layer_norm(z) at z +- h, in FP64.
void check_backward(const KernelInfo& kernel, std::int64_t tokens, std::int64_t depth, bool both) {
  constexpr std::int64_t kBatch = 3;
  const Operand z(kBatch, tokens, depth, false, 1), grad(kBatch, tokens, depth, false, 2),
      across(kBatch, tokens, depth, true, 3);
  std::vector<float> found(z.values.size()), weight(static_cast<std::size_t>(depth), 1.5f), of_weight(weight.size()),
      of_bias(weight.size());
  AddNormBackwardArgs args;
  args.batch = kBatch;
  if (both) args.grad = grad.view;
  args.grad_transposed = across.view;
  args.z = z.values.data();
  args.norm = NormKind::layer;
  args.weight = weight.data();
  args.grad_z = found.data();
  args.grad_weight = of_weight.data();
  args.grad_bias = of_bias.data();
  const Status status = kernel.run.add_norm_backward(args);
  ASSERT_TRUE(status.ok()) << status.message();
  std::vector<double> weights_sum(weight.size()), bias_sum(weight.size());
  for (std::int64_t b = 0; b < kBatch; ++b)
    for (std::int64_t i = 0; i < tokens; ++i) {
      std::vector<double> row, g;
      for (std::int64_t k = 0; k < depth; ++k) {
        row.push_back(z.at(b, i, k));
        g.push_back(across.at(b, i, k) + (both ? grad.at(b, i, k) : 0));
      }
      const auto total = [&](std::vector<double> moved) {
        moved = layer_norm(moved);
        double sum = 0;
        for (std::size_t k = 0; k < moved.size(); ++k) sum += 1.5 * moved[k] * g[k];
        return sum;
      };
      const std::vector<double> normal = layer_norm(row);
      for (std::int64_t k = 0; k < depth; ++k) {
        const auto at = static_cast<std::size_t>(k);
        weights_sum[at] += g[at] * normal[at];
        bias_sum[at] += g[at];
        std::vector<double> up = row, down = row;
        up[at] += 1e-5;
        down[at] -= 1e-5;
        const double expected = (total(up) - total(down)) / 2e-5;
        ASSERT_NEAR(found[static_cast<std::size_t>((b * tokens + i) * depth + k)], expected,
                    1e-4 * (1 + std::abs(expected)))
            << b << " " << i << " " << k;
      }
    }
  for (std::size_t k = 0; k < weight.size(); ++k) {
    ASSERT_NEAR(of_weight[k], weights_sum[k], 1e-3);
    ASSERT_NEAR(of_bias[k], bias_sum[k], 1e-3);
  }
}

TEST(AddNorm, EveryBackwardAgreesWithDifferences) {
  testing::at_every_level([] {
    for (const KernelInfo* kernel : Registry::instance().all()) {
      if (kernel->op != Op::add_norm || !kernel->is_supported()) continue;
      SCOPED_TRACE(kernel->name);
      for (const bool both : {false, true})
        for (const std::int64_t depth : {5, 32})
          for (const std::int64_t tokens : {1, 7, 33}) check_backward(*kernel, tokens, depth, both);
    }
  });
}

TEST(AddNorm, ABackwardNeedsAGradientAndWhatTheNormSaw) {
  const Operand x(2, 3, 4, false, 1), y(2, 3, 5, true, 2);
  AddNormBackwardArgs args;
  args.batch = 2;
  EXPECT_NE(validate(args).message().find("needs a gradient"), std::string::npos);
  args.grad = x.view;
  EXPECT_TRUE(validate(args).ok());
  args.norm = NormKind::rms;
  EXPECT_NE(validate(args).message().find("needs what it saw"), std::string::npos);
  args.z = x.values.data();
  args.grad_transposed = y.view;
  EXPECT_NE(validate(args).message().find("the gradient of y^T is [3, 5]"), std::string::npos);
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
