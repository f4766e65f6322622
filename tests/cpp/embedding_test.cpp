// Every bag kernel of the registry against double precision, on buffers of exactly their size (the sanitizers watch).
#include "octavo/embedding.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "levels.hpp"
#include "octavo/float8.hpp"
#include "octavo/registry.hpp"

namespace octavo::testing {
namespace {

constexpr DType kRowTypes[] = {DType::f32, DType::f16, DType::bf16, DType::e4m3, DType::u8, DType::u4};

struct Table {
  std::vector<std::uint8_t> bytes;
  std::vector<float> scale, state;
  std::vector<double> values;  // [rows, dim]
  TableView view;
};

Table make_table(std::int64_t rows, std::int64_t dim, DType dtype, Pooling pooling, std::mt19937& random) {
  std::normal_distribution<float> normal;
  const auto n = static_cast<std::size_t>(rows * dim);
  const bool affine = dtype == DType::u8 || dtype == DType::u4;
  Table t;
  const std::int64_t stored = packed_bytes(dtype, dim);
  t.bytes.resize(static_cast<std::size_t>(rows * stored));
  if (dtype == DType::e4m3) t.scale.resize(static_cast<std::size_t>(rows));
  if (affine) t.scale.resize(static_cast<std::size_t>(2 * rows));
  for (float& s : t.scale) s = 0.01f * normal(random);
  t.state.assign(static_cast<std::size_t>(rows), 0.5f);
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t row = i / static_cast<std::size_t>(dim);
    const float x = normal(random);
    double value = x;
    if (dtype == DType::f32) {
      std::memcpy(&t.bytes[4 * i], &x, 4);
    } else if (dtype == DType::f16) {
      const auto code = static_cast<std::uint16_t>(random() & 0xbfff);  // finite, subnormals among them
      std::memcpy(&t.bytes[2 * i], &code, 2);
      const int exponent = code >> 10 & 31, fraction = code & 1023;
      value = std::ldexp(exponent == 0 ? fraction : fraction + 1024, (exponent == 0 ? 1 : exponent) - 25);
      if ((code & 0x8000) != 0) value = -value;
    } else if (dtype == DType::bf16) {
      const std::uint16_t code = encode_bf16(x);
      std::memcpy(&t.bytes[2 * i], &code, 2);
      value = decode_bf16(code);
    } else if (dtype == DType::e4m3) {
      t.bytes[i] = encode_e4m3(100.0f * x);
      value = static_cast<double>(decode_e4m3(t.bytes[i])) * t.scale[row];
    } else if (dtype == DType::u8) {
      t.bytes[i] = static_cast<std::uint8_t>(random());
      value = static_cast<double>(t.bytes[i]) * t.scale[2 * row] + t.scale[2 * row + 1];
    } else {
      const std::size_t column = i % static_cast<std::size_t>(dim);
      const std::uint32_t code = random() % 16;
      t.bytes[row * static_cast<std::size_t>(stored) + column / 2] |=
          static_cast<std::uint8_t>(column % 2 == 0 ? code : code << 4);
      value = static_cast<double>(code) * t.scale[2 * row] + t.scale[2 * row + 1];
    }
    t.values.push_back(value);
  }
  t.view = {"t",
            t.bytes.data(),
            rows,
            dim,
            stored / static_cast<std::int64_t>(size_of(dtype)),
            dtype,
            t.scale.empty() ? nullptr : t.scale.data(),
            pooling,
            t.state.data(),
            affine ? 2 : 1};
  return t;
}

struct Bags {
  std::vector<std::int64_t> values, offsets{0};
  std::vector<float> weights;
};

Bags make_bags(std::int64_t tables, std::int64_t batch, std::int64_t rows, std::mt19937& random) {
  Bags bags;
  for (std::int64_t b = 0; b < tables * batch; ++b) {
    for (std::uint32_t left = b == 3 ? 90 : random() % 5; left > 0; --left) {
      bags.values.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint32_t>(rows)));
      bags.weights.push_back(static_cast<float>(random() % 7) - 3.0f);
    }
    bags.offsets.push_back(static_cast<std::int64_t>(bags.values.size()));
  }
  return bags;
}

// Calls visit(value index, bag, coefficient) for every value of table t.
template <class Visit>
void each_value(const Bags& bags, std::int64_t batch, std::int64_t t, Pooling pooling, bool weighted, Visit&& visit) {
  for (std::int64_t b = 0; b < batch; ++b) {
    const auto begin = bags.offsets[static_cast<std::size_t>(t * batch + b)];
    const auto end = bags.offsets[static_cast<std::size_t>(t * batch + b + 1)];
    for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i)
      visit(i, static_cast<std::size_t>(b),
            (weighted ? bags.weights[i] : 1.0) / (pooling == Pooling::mean ? static_cast<double>(end - begin) : 1.0));
  }
}

TEST(Embedding, ForwardOfEveryKernelAndFormat) {
  std::mt19937 random(5);
  constexpr std::int64_t kBatch = 9, kRows = 13;
  at_every_level([&] {
    for (const DType dtype : kRowTypes)
      for (const std::int64_t dim : {1, 7, 16, 33, 64, 129, 200}) {
        Table tables[] = {make_table(kRows, dim, dtype, Pooling::sum, random),
                          make_table(kRows, 5, dtype, Pooling::mean, random)};
        const TableView views[] = {tables[0].view, tables[1].view};
        const Bags bags = make_bags(2, kBatch, kRows, random);
        const auto width = static_cast<std::size_t>(dim + 5);
        for (const bool weighted : {false, true}) {
          std::vector<double> expected(static_cast<std::size_t>(kBatch) * width, 0.0);
          for (std::size_t t = 0; t < 2; ++t)
            each_value(bags, kBatch, static_cast<std::int64_t>(t), views[t].pooling, weighted,
                       [&](std::size_t i, std::size_t bag, double factor) {
                         const auto d = static_cast<std::size_t>(views[t].dim),
                                    row = static_cast<std::size_t>(bags.values[i]);
                         for (std::size_t c = 0; c < d; ++c)
                           expected[bag * width + (t == 0 ? 0 : static_cast<std::size_t>(dim)) + c] +=
                               factor * tables[t].values[row * d + c];
                       });
          for (KernelInfo* kernel : Registry::instance().all()) {
            if (kernel->op != Op::bag_forward || !kernel->is_supported()) continue;
            SCOPED_TRACE(kernel->name + " dim " + std::to_string(dim) + " type " +
                         std::to_string(static_cast<int>(dtype)));
            std::vector<float> out(expected.size(), -1.0f);
            BagForwardArgs args{
                views,
                {kBatch, 2, bags.values.data(), static_cast<std::int64_t>(bags.values.size()), bags.offsets.data(),
                 weighted ? bags.weights.data() : nullptr},
                Bounds::error,
                {out.data(), kBatch, static_cast<std::int64_t>(width), static_cast<std::int64_t>(width), DType::f32}};
            const Status status = kernel->run.bag_forward(args);
            ASSERT_TRUE(status.ok()) << status.message();
            double largest = 1e-30, error = 0.0;
            for (std::size_t i = 0; i < out.size(); ++i) {
              largest = std::max(largest, std::fabs(expected[i]));
              error = std::max(error, std::fabs(out[i] - expected[i]));
            }
            EXPECT_LE(error / largest, 1e-5);
          }
        }
      }
  });
}

TEST(Embedding, RowsOfEveryKernelAndFormat) {
  std::mt19937 random(8);
  constexpr std::int64_t kBatch = 9, kRows = 13;
  at_every_level([&] {
    for (const DType dtype : kRowTypes)
      for (const std::int64_t dim : {1, 7, 16, 33, 64, 129, 200}) {
        const Table tables[] = {make_table(kRows, dim, dtype, Pooling::sum, random),
                                make_table(kRows, 5, dtype, Pooling::mean, random)};
        const TableView views[] = {tables[0].view, tables[1].view};
        const Bags bags = make_bags(2, kBatch, kRows, random);
        const std::int64_t firsts[] = {0, bags.offsets[kBatch], bags.offsets[2 * kBatch]};
        for (KernelInfo* kernel : Registry::instance().all()) {
          if (kernel->op != Op::row_lookup || !kernel->is_supported()) continue;
          SCOPED_TRACE(kernel->name + " dim " + std::to_string(dim) + " type " +
                       std::to_string(static_cast<int>(dtype)));
          std::vector<float> out[2];
          MatrixView outs[2];
          for (std::size_t t = 0; t < 2; ++t) {
            const std::int64_t lookups = firsts[t + 1] - firsts[t];
            out[t].assign(static_cast<std::size_t>(lookups * views[t].dim), -1.0f);
            outs[t] = {out[t].data(), lookups, views[t].dim, views[t].dim, DType::f32};
          }
          const RowLookupArgs args{
              views,
              {kBatch, 2, bags.values.data(), static_cast<std::int64_t>(bags.values.size()), bags.offsets.data()},
              Bounds::error,
              outs};
          const Status status = kernel->run.row_lookup(args);
          ASSERT_TRUE(status.ok()) << status.message();
          for (std::size_t t = 0; t < 2; ++t)
            for (std::size_t i = 0; i < out[t].size(); ++i) {
              const auto d = static_cast<std::size_t>(views[t].dim);
              const auto row = static_cast<std::size_t>(bags.values[static_cast<std::size_t>(firsts[t]) + i / d]);
              const double expected = tables[t].values[row * d + i % d];
              EXPECT_NEAR(out[t][i], expected, 1e-6 * (1 + std::fabs(expected)));
            }
        }
      }
  });
}

TEST(Embedding, BackwardIsOneDenseStep) {
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  constexpr std::int64_t kBatch = 21, kRows = 11;
  at_every_level([&] {
    for (const std::int64_t dim : {1, 7, 64, 130})
      for (const auto kind : {OptimizerConfig::Kind::sgd, OptimizerConfig::Kind::row_wise_adagrad})
        for (KernelInfo* kernel : Registry::instance().all()) {
          if (kernel->op != Op::bag_backward || !kernel->is_supported()) continue;
          SCOPED_TRACE(kernel->name + " dim " + std::to_string(dim));
          Table table = make_table(kRows, dim, DType::f32, Pooling::mean, random);
          const Bags bags = make_bags(1, kBatch, kRows, random);
          std::vector<float> grad(static_cast<std::size_t>(kBatch * dim));
          for (float& g : grad) g = normal(random);
          const auto d = static_cast<std::size_t>(dim);
          std::vector<double> dense(static_cast<std::size_t>(kRows) * d, 0.0), expected = table.values;
          each_value(bags, kBatch, 0, Pooling::mean, true, [&](std::size_t i, std::size_t bag, double factor) {
            for (std::size_t c = 0; c < d; ++c)
              dense[static_cast<std::size_t>(bags.values[i]) * d + c] += factor * grad[bag * d + c];
          });
          for (std::size_t row = 0; row < static_cast<std::size_t>(kRows); ++row) {
            double squares = 0.0, step = 0.1;
            for (std::size_t c = 0; c < d; ++c) squares += dense[row * d + c] * dense[row * d + c];
            if (kind == OptimizerConfig::Kind::row_wise_adagrad)
              step /= std::sqrt(0.5 + squares / static_cast<double>(dim)) + 1e-4;
            for (std::size_t c = 0; c < d; ++c) expected[row * d + c] -= step * dense[row * d + c];
          }
          const BagBackwardArgs args{&table.view,
                                     {kBatch, 1, bags.values.data(), static_cast<std::int64_t>(bags.values.size()),
                                      bags.offsets.data(), bags.weights.data()},
                                     Bounds::error,
                                     {grad.data(), kBatch, dim, dim, DType::f32},
                                     {kind, 0.1f, 1e-4f, 0.0f},
                                     nullptr};
          const Status status = kernel->run.bag_backward(args);
          ASSERT_TRUE(status.ok()) << status.message();
          const auto* rows = reinterpret_cast<const float*>(table.bytes.data());
          for (std::size_t i = 0; i < expected.size(); ++i)
            EXPECT_NEAR(rows[i], expected[i], 2e-5 * (1 + std::fabs(expected[i])));
        }
  });
}

TEST(Embedding, BadOffsetsAreRefusedBeforeAnythingIsWrittenAndIndicesOnTheWay) {
  std::mt19937 random(7);
  Table table = make_table(4, 3, DType::f32, Pooling::sum, random);
  std::vector<float> out(6, -1.0f);
  const std::int64_t values[] = {0, 9};
  const struct {
    std::vector<std::int64_t> offsets;
    Code code;
  } cases[] = {{{0, 2, 1}, Code::invalid_argument},
               {{1, 1, 2}, Code::invalid_argument},
               {{0, 1, 3}, Code::invalid_argument},
               {{0, 1, 2}, Code::out_of_range}};
  for (KernelInfo* kernel : Registry::instance().all())
    for (const auto& c : cases) {
      if (kernel->op != Op::bag_forward || !kernel->is_supported()) continue;
      out.assign(6, -1.0f);
      const BagForwardArgs args{
          &table.view, {2, 1, values, 2, c.offsets.data(), nullptr}, Bounds::error, {out.data(), 2, 3, 3, DType::f32}};
      const Status status = kernel->run.bag_forward(args);
      EXPECT_EQ(status.code(), c.code) << status.message();
      if (c.code == Code::invalid_argument)
        for (const float y : out) EXPECT_EQ(y, -1.0f);
    }
}

}  // namespace
}  // namespace octavo::testing
