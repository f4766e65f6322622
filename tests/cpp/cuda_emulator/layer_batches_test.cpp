// Layers of one shape as one batch, from run_grouped to every address of its kernels, beside the same one by one.
#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <set>

#include "gemm/layers.hpp"
#include "gemm_reference.hpp"
#include "linear_case.hpp"
#include "octavo/grouped.hpp"

namespace octavo::testing {
namespace {

using cuda::Store;

struct Class {
  Numerics numerics;
  LinearLauncher run;
  LinearBatchLauncher run_batch;
};
constexpr Class kClasses[] = {
    {Numerics::bf16, cuda::linear_bf16_sm90, cuda::linear_batch_bf16_sm90},
    {Numerics::e4m3_row, cuda::linear_e4m3_row_sm90, cuda::linear_batch_e4m3_row_sm90},
    {Numerics::e4m3_row_fast, cuda::linear_e4m3_row_fast_sm90, cuda::linear_batch_e4m3_row_fast_sm90}};

struct Side {
  bool in_columns;   // groups lie in each other's rows; else behind each other
  std::int64_t gap;  // elements between rows or groups
};

// The part of group `at` of `count` matrices [rows, cols] in `all`.
MatrixView part(Matrix& all, const Side& side, std::int64_t at, std::int64_t rows, std::int64_t cols) {
  MatrixView view = all.view();
  const std::int64_t offset = side.in_columns ? at * (cols + side.gap) : at * rows * all.stride;
  view.data = static_cast<char*>(view.data) + offset * static_cast<std::int64_t>(size_of(all.dtype));
  view.rows = rows;
  view.cols = cols;
  return view;
}

Matrix memory(const Side& side, DType dtype, std::int64_t count, std::int64_t rows, std::int64_t cols) {
  return side.in_columns ? Matrix(dtype, rows, count * (cols + side.gap)) : Matrix(dtype, count * rows, cols, side.gap);
}

// `count` layers whose weights, scales and vectors are parts of one of count * n columns.
struct Groups {
  std::int64_t count, n;
  LinearCase all;
  Matrix x, y;
  Side x_side, y_side;
  KernelInfo kernel;
  std::deque<PackedWeight> weights;

  Groups(LinearSpec spec, std::int64_t groups, const Side& x_at, const Side& y_at, const Class& c)
      : count(groups),
        n(spec.n),
        all((spec.n *= groups, spec), c.numerics),
        x(memory(x_at, spec.x, groups, spec.m, spec.k)),
        y(memory(y_at, spec.y, groups, spec.m, n)),
        x_side(x_at),
        y_side(y_at) {
    kernel.numerics = c.numerics;
    kernel.device = Device::cuda;
    kernel.run.linear = c.run;
    kernel.run.linear_batch = c.run_batch;
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (std::int64_t r = 0; r < x.rows; ++r)
      for (std::int64_t k = 0; k < x.cols; ++k) x.set(r, k, normal(random));
    const auto code_bytes = static_cast<std::int64_t>(size_of(weight_format(c.numerics)));
    for (std::int64_t g = 0; g < count; ++g)
      weights.emplace_back(all.codes.data() + g * n * spec.k * code_bytes,
                           all.scale.empty() ? nullptr : all.scale.data() + g * n, n, spec.k,
                           weight_format(c.numerics));
  }

  GroupedLinear call(std::int64_t g, Matrix& out) {
    LinearArgs args = all.args();
    args.x = part(x, x_side, g, all.spec.m, all.spec.k);
    args.y = part(out, y_side, g, all.spec.m, n);
    args.weight = &weights[static_cast<std::size_t>(g)];
    for (const float** vector : {&args.epilogue.bias, &args.epilogue.norm_weight, &args.epilogue.norm_bias})
      if (*vector != nullptr) *vector += g * n;
    return {&kernel, args};
  }
  std::vector<GroupedLinear> calls(Matrix& out) {
    std::vector<GroupedLinear> found;
    for (std::int64_t g = 0; g < count; ++g) found.push_back(call(g, out));
    return found;
  }
};

// Runs them both ways; what is between the outputs must stay too. The GEMM's store as a batch.
Store expect_equal(const LinearSpec& spec, std::int64_t count, const Side& x, const Side& y, const Class& c) {
  Groups groups(spec, count, x, y, c);
  Matrix alone = groups.y;
  const auto calls = groups.calls(groups.y);
  EXPECT_EQ(batch_of(calls.data(), calls.size()).count, count) << spec.describe();
  const int before = gemm_launches();
  const Status status = run_grouped(calls.data(), calls.size());
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(gemm_launches(), before + 1);
  const Store store = store_of_last();
  bool same_route = true;
  for (std::int64_t g = 0; g < count; ++g) {
    EXPECT_TRUE(c.run(groups.call(g, alone).args).ok());
    same_route = same_route && (store_of_last() == Store::norm) == (store == Store::norm);
  }
  if (same_route) {
    EXPECT_EQ(groups.y.f32, alone.f32) << to_string(c.numerics) << " " << spec.describe();
    EXPECT_EQ(groups.y.bf16, alone.bf16) << to_string(c.numerics) << " " << spec.describe();
    return store;
  }
  float worst = 0, largest = 0;
  for (std::int64_t r = 0; r < alone.rows; ++r)
    for (std::int64_t i = 0; i < alone.cols; ++i) {
      worst = std::max(worst, std::fabs(groups.y.get(r, i) - alone.get(r, i)));
      largest = std::max(largest, std::fabs(alone.get(r, i)));
    }
  EXPECT_LE(worst, largest / 64) << to_string(c.numerics) << " " << spec.describe();
  return store;
}

constexpr Side kBehind{false, 0}, kColumns{true, 0}, kOddColumns{true, 3}, kPadded{false, 5};

TEST(CudaLayerBatches, AreTheLayersOneByOne) {
  std::set<Store> seen;
  for (const Class& c : kClasses)
    for (const auto& [m, n, k] : {std::array{1, 8, 16}, {5, 16, 48}, {7, 67, 33}, {3, 24, 8}, {2, 5, 1}})
      for (const DType type : {DType::f32, DType::bf16})
        for (const auto& [x, y] :
             {std::pair{kBehind, kBehind}, {kColumns, kColumns}, {kOddColumns, kPadded}, {kPadded, kOddColumns}}) {
          LinearSpec spec{.m = m, .n = n, .k = k, .x = type, .y = type, .bias = y.gap != 3};
          spec.activation = spec.bias ? Activation::silu : Activation::none;
          seen.insert(expect_equal(spec, 3, x, y, c));
        }
  EXPECT_EQ(seen, (std::set<Store>{Store::tma, Store::direct}));
}

TEST(CudaLayerBatches, WithEveryNorm) {
  std::set<Store> seen;
  for (const Class& c : kClasses)
    for (const int n : {72, 131, 264})
      for (const NormKind norm : {NormKind::layer, NormKind::rms, NormKind::block, NormKind::swish_rms})
        for (const DType y : {DType::f32, DType::bf16}) {
          LinearSpec spec{.m = 3, .n = n, .k = 40, .x = DType::bf16, .y = y, .norm = norm};
          spec.norm_block = 64;
          spec.activation = norm == NormKind::swish_rms ? Activation::none : Activation::relu;
          seen.insert(expect_equal(spec, 2, kColumns, n == 264 ? kOddColumns : kColumns, c));
        }
  EXPECT_EQ(seen, (std::set<Store>{Store::tma, Store::direct, Store::norm}));
}

TEST(CudaLayerBatches, EmptyOnes) {
  for (const Class& c : kClasses) {
    Groups groups({.m = 0, .n = 8, .k = 16}, 3, kBehind, kBehind, c);
    const auto calls = groups.calls(groups.y);
    EXPECT_TRUE(run_grouped(calls.data(), calls.size()).ok());
    expect_equal({.m = 2, .n = 8, .k = 16, .norm_vectors = false}, 2, kBehind, kBehind, c);
  }
}

// What one launch cannot take is cut, never computed wrongly: one thing changes from some group on.
TEST(CudaLayerBatches, EndWhereALayerIsDifferent) {
  const Class& c = kClasses[1];
  const LinearSpec spec{.m = 4, .n = 16, .k = 32, .norm = NormKind::layer};
  Groups groups(spec, 5, kBehind, kBehind, c);
  std::vector<float> elsewhere(16, 1.0f);
  KernelInfo other = groups.kernel;
  Matrix residual(DType::f32, 4, 16);
  const PackedWeight blocks(groups.all.codes.data(), groups.all.scale.data(), 16, 32, DType::e4m3,
                            Scaling::block_128x128);
  const auto length = [&](std::size_t at, auto change) {
    auto calls = groups.calls(groups.y);
    change(calls[at]);
    return batch_of(calls.data(), calls.size()).count;
  };
  EXPECT_EQ(length(3, [](GroupedLinear&) {}), 5);
  for (const std::size_t at : {0, 1, 3}) {
    const std::int64_t end = at == 0 ? 1 : static_cast<std::int64_t>(at);
    const auto expect_end = [&](auto change) { EXPECT_EQ(length(at, change), end) << at; };
    expect_end([&](GroupedLinear& g) { g.kernel = &other; });
    expect_end([&](GroupedLinear& g) { g.args.epilogue.bias = elsewhere.data(); });
    expect_end([&](GroupedLinear& g) { g.args.epilogue.bias = nullptr; });
    expect_end([&](GroupedLinear& g) { g.args.epilogue.norm_weight = elsewhere.data(); });
    expect_end([&](GroupedLinear& g) { g.args.epilogue.norm_bias = nullptr; });
    expect_end([&](GroupedLinear& g) { g.args.epilogue.norm = NormKind::rms; });
    expect_end([&](GroupedLinear& g) { g.args.epilogue.eps = 1e-3f; });
    expect_end([&](GroupedLinear& g) { g.args.epilogue.activation = Activation::relu; });
    expect_end([&](GroupedLinear& g) { g.args.epilogue.residual = residual.view(); });
    expect_end([&](GroupedLinear& g) { g.args.epilogue.saved = residual.view(); });
    expect_end([&](GroupedLinear& g) { g.args.weight = &blocks; });
    expect_end([&](GroupedLinear& g) { g.args.x.rows = 3; });
    expect_end([&](GroupedLinear& g) { g.args.x.row_stride = 64; });
    expect_end([&](GroupedLinear& g) { g.args.y.dtype = DType::bf16; });
    expect_end([&](GroupedLinear& g) { g.args.y_scale = elsewhere.data(); });
    expect_end([&](GroupedLinear& g) { g.args.stream = &other; });
  }
  EXPECT_EQ(length(2, [](GroupedLinear& g) { g.args.x.data = static_cast<float*>(g.args.x.data) + 1; }), 2);
  EXPECT_EQ(length(1, [](GroupedLinear& g) { g.args.y.data = static_cast<char*>(g.args.y.data) + 2; }), 1);
  EXPECT_EQ(length(0, [](GroupedLinear& g) { g.args.y.data = static_cast<float*>(g.args.y.data) + 4 * 16 * 4; }), 1);

  // The same x for all, outputs that overlap, or that others read, kernels without batches.
  auto calls = groups.calls(groups.y);
  for (GroupedLinear& call : calls) call.args.x = calls[0].args.x;
  EXPECT_EQ(batch_of(calls.data(), calls.size()).count, 1);
  calls = groups.calls(groups.y);
  for (std::size_t g = 0; g < calls.size(); ++g)
    calls[g].args.y.data = static_cast<float*>(calls[0].args.y.data) + 8 * g;
  EXPECT_EQ(batch_of(calls.data(), calls.size()).count, 1);
  calls = groups.calls(groups.y);  // a chain: one layer's output is the next one's x
  for (GroupedLinear& call : calls) call.args.y.cols = call.args.y.row_stride = 32;
  calls[0].args.y = calls[1].args.x;
  calls[1].args.y = calls[2].args.x;
  EXPECT_EQ(batch_of(calls.data(), 2).count, 1);
  calls = groups.calls(groups.y);
  groups.kernel.run.linear_batch = nullptr;
  EXPECT_EQ(batch_of(calls.data(), calls.size()).count, 1);
}

// Columns of outputs that their rows have no room for: the batch ends before.
TEST(CudaLayerBatches, StayWithinTheRowsOfTheirOutputs) {
  Groups groups({.m = 2, .n = 8, .k = 16, .bias = false}, 4, kBehind, kColumns, kClasses[0]);
  auto calls = groups.calls(groups.y);
  for (GroupedLinear& call : calls) call.args.y.row_stride = 24;
  EXPECT_EQ(batch_of(calls.data(), calls.size()).count, 3);
}

}  // namespace
}  // namespace octavo::testing
