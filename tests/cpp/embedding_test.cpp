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

using Kind = OptimizerConfig::Kind;

// Row [dim] and state after one step with gradient g, in double; embedding.hpp has the formulas.
void step(const OptimizerConfig& o, std::size_t dim, double* x, const double* g, double* state) {
  double squares = 0.0;
  for (std::size_t c = 0; c < dim; ++c) squares += g[c] * g[c];
  if (o.kind == Kind::row_wise_adagrad) *state += squares / static_cast<double>(dim);
  for (std::size_t c = 0; c < dim; ++c) {
    switch (o.kind) {
      case Kind::none: break;
      case Kind::sgd: x[c] -= o.lr * g[c]; break;
      case Kind::row_wise_adagrad: x[c] -= o.lr / (std::sqrt(*state) + o.eps) * g[c]; break;
      case Kind::adagrad:
        state[c] += g[c] * g[c];
        x[c] -= o.lr * g[c] / (std::sqrt(state[c]) + o.eps);
        break;
      case Kind::adam: {
        double &m = state[c], &v = state[dim + c];
        m += (1.0 - o.beta1) * (g[c] - m);
        v += (1.0 - o.beta2) * (g[c] * g[c] - v);
        const auto t = static_cast<double>(o.step);
        const double rate = o.lr * std::sqrt(1.0 - std::pow(o.beta2, t)) / (1.0 - std::pow(o.beta1, t));
        x[c] -= rate * m / (std::sqrt(v) + o.eps);
        break;
      }
    }
  }
}

std::size_t state_width(Kind kind, std::size_t dim) {
  return kind == Kind::adam ? 2 * dim : kind == Kind::adagrad ? dim : 1;
}

double decode(const Table& table, std::size_t row, std::size_t at) {
  const TableView& view = table.view;
  if (view.dtype == DType::f32) return reinterpret_cast<const float*>(table.bytes.data())[at];
  if (view.dtype == DType::bf16) return decode_bf16(reinterpret_cast<const std::uint16_t*>(table.bytes.data())[at]);
  if (view.dtype == DType::f16) return decode_f16(reinterpret_cast<const std::uint16_t*>(table.bytes.data())[at]);
  if (view.dtype == DType::e4m3) return static_cast<double>(decode_e4m3(table.bytes[at])) * table.scale[row];
  const std::size_t dim = static_cast<std::size_t>(view.dim), column = at - row * dim;
  const int code = view.dtype == DType::u8 ? table.bytes[at]
                                           : table.bytes[row * ((dim + 1) / 2) + column / 2] >> column % 2 * 4 & 15;
  return static_cast<double>(code) * table.scale[2 * row] + table.scale[2 * row + 1];
}

// Largest distance of two neighbouring codes over the largest magnitude of a row.
double code_step(DType dtype) {
  switch (dtype) {
    case DType::f32: return 0.0;
    case DType::f16: return 0x1p-10;
    case DType::bf16: return 0x1p-7;
    case DType::e4m3: return 32.0 / 448;
    case DType::u4: return 2.0 / 15;
    default: return 2.0 / 255;
  }
}

void check_backward(const KernelInfo& kernel, DType dtype, Kind kind, std::int64_t dim, bool weighted,
                    std::mt19937& random) {
  SCOPED_TRACE(kernel.name + " dim " + std::to_string(dim) + " type " + std::to_string(static_cast<int>(dtype)) +
               " optimizer " + std::to_string(static_cast<int>(kind)));
  constexpr std::int64_t kBatch = 21, kRows = 11;
  std::normal_distribution<float> normal;
  Table table = make_table(kRows, dim, dtype, Pooling::mean, random);
  const auto d = static_cast<std::size_t>(dim), rows = static_cast<std::size_t>(kRows);
  const std::size_t width = state_width(kind, d);
  table.state.assign(rows * width, 0.5f);
  table.view.optimizer_state = table.state.data();
  const Bags bags = make_bags(1, kBatch, kRows, random);
  std::vector<float> grad(static_cast<std::size_t>(kBatch * dim));
  for (float& g : grad) g = normal(random);
  OptimizerConfig optimizer;
  optimizer.kind = kind;
  optimizer.lr = 0.1f;
  optimizer.eps = 1e-4f;
  optimizer.step = 3;
  std::vector<double> dense(rows * d, 0.0), expected = table.values, states(rows * width, 0.5);
  each_value(bags, kBatch, 0, Pooling::mean, weighted, [&](std::size_t i, std::size_t bag, double factor) {
    for (std::size_t c = 0; c < d; ++c)
      dense[static_cast<std::size_t>(bags.values[i]) * d + c] += factor * grad[bag * d + c];
  });
  for (std::size_t row = 0; row < rows; ++row)
    step(optimizer, d, &expected[row * d], &dense[row * d], &states[row * width]);
  BagBackwardArgs args;
  args.tables = &table.view;
  args.indices = {kBatch,
                  1,
                  bags.values.data(),
                  static_cast<std::int64_t>(bags.values.size()),
                  bags.offsets.data(),
                  weighted ? bags.weights.data() : nullptr};
  args.grad_out = {grad.data(), kBatch, dim, dim, DType::f32};
  args.optimizer = optimizer;
  const Status status = kernel.run.bag_backward(args);
  ASSERT_TRUE(status.ok()) << status.message();
  for (std::size_t row = 0; row < rows; ++row) {
    double largest = 1.0;
    for (std::size_t c = 0; c < d; ++c) largest = std::max(largest, std::fabs(expected[row * d + c]));
    for (std::size_t c = 0; c < d; ++c)
      EXPECT_NEAR(decode(table, row, row * d + c), expected[row * d + c], (2e-5 + code_step(dtype)) * largest);
  }
  if (kind != Kind::sgd) {
    for (std::size_t i = 0; i < states.size(); ++i)
      EXPECT_NEAR(table.state[i], states[i], 2e-5 * (1 + std::fabs(states[i])));
  }
}

TEST(Embedding, BackwardIsOneDenseStep) {
  std::mt19937 random(6);
  at_every_level([&] {
    for (KernelInfo* kernel : Registry::instance().all()) {
      if (kernel->op != Op::bag_backward || !kernel->is_supported()) continue;
      for (const std::int64_t dim : {1, 7, 64, 130})
        for (const auto kind : {Kind::sgd, Kind::row_wise_adagrad, Kind::adagrad, Kind::adam})
          for (const DType dtype : kRowTypes)
            for (const bool weighted : {false, true}) check_backward(*kernel, dtype, kind, dim, weighted, random);
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
      if (c.code == Code::invalid_argument) {
        for (const float y : out) EXPECT_EQ(y, -1.0f);
      }
    }
}

}  // namespace
}  // namespace octavo::testing
