// The CUDA embedding kernels: forward against the definition in scalars, backward against the CPU's, bit for bit.
#include "octavo/embedding.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "embedding/lookup_runs.hpp"
#include "kernels.hpp"
#include "octavo/float8.hpp"
#include "octavo/registry.hpp"
#include "orders.hpp"

namespace octavo::cuda {

// In place of CUB.
Status sort_lookups(const SortedLookups& lookups, std::int64_t num_values, int key_bits, cudaStream_t) {
  cuda_emulator::in_stream([=] {
    const auto n = static_cast<std::size_t>(num_values);
    std::vector<std::size_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    const std::uint32_t mask = key_bits == 32 ? ~0u : (1u << key_bits) - 1;
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return (lookups.keys[a] & mask) < (lookups.keys[b] & mask); });
    for (std::size_t i = 0; i < n; ++i) {
      lookups.sorted_keys[i] = lookups.keys[order[i]];
      lookups.sorted_positions[i] = lookups.positions[order[i]];
    }
  });
  return {};
}

}  // namespace octavo::cuda

namespace octavo::testing {
namespace {

using Kind = OptimizerConfig::Kind;
constexpr DType kRowTypes[] = {DType::f32, DType::f16, DType::bf16, DType::e4m3, DType::u8, DType::u4};
enum class Place { separate, in_row, power_of_two };

std::uint32_t draw(std::mt19937& random) { return static_cast<std::uint32_t>(random()); }

// Rows of random codes on memory of exactly their size.
struct Table {
  std::vector<float> memory, scale, state;  // memory: the rows' bytes, 4-byte aligned
  std::vector<std::uint8_t> exponents;
  TableView view;

  Table(std::int64_t rows, std::int64_t dim, DType dtype, Place place, Pooling pooling, std::mt19937& random,
        std::int64_t state_width = 2 * 130) {
    const bool affine = dtype == DType::u8 || dtype == DType::u4, coded = affine || dtype == DType::e4m3;
    const std::int64_t per_scale = affine ? 2 : 1, codes = packed_bytes(dtype, dim);
    const bool in_row = coded && place == Place::in_row;
    const std::int64_t bytes = in_row ? (codes + 3) / 4 * 4 + per_scale * 4 : codes;
    memory.resize(static_cast<std::size_t>((rows * bytes + 3) / 4));
    auto* at = reinterpret_cast<std::uint8_t*>(memory.data());
    for (std::int64_t i = 0; i < rows * bytes; ++i) at[i] = static_cast<std::uint8_t>(draw(random));
    std::normal_distribution<float> normal;
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < dim; ++c) {
        std::uint8_t* row = at + r * bytes;
        const float x = normal(random);
        const std::uint16_t half = dtype == DType::f16 ? encode_f16(x) : encode_bf16(x);
        if (dtype == DType::f32) std::memcpy(row + 4 * c, &x, 4);
        if (dtype == DType::f16 || dtype == DType::bf16) std::memcpy(row + 2 * c, &half, 2);
        if (dtype == DType::e4m3) row[c] = encode_e4m3(100.0f * x);
      }
    view = {"t", memory.data(), rows, dim, in_row || coded ? bytes : dim, dtype};
    view.pooling = pooling;
    if (in_row) {
      view.scale = memory.data() + (codes + 3) / 4;
      view.scale_stride = bytes / 4;
    } else if (coded && place == Place::separate) {
      scale.resize(static_cast<std::size_t>(rows * per_scale));
      view.scale = scale.data();
      view.scale_stride = per_scale;
    } else if (dtype == DType::e4m3) {
      for (std::int64_t r = 0; r < rows; ++r) exponents.push_back(static_cast<std::uint8_t>(110 + draw(random) % 20));
      view.scale_exponents = exponents.data();
    }
    if (view.scale != nullptr)
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t i = 0; i < per_scale; ++i) view.scale_of(r)[i] = 0.01f + 0.01f * std::fabs(normal(random));
    state.resize(static_cast<std::size_t>(rows * state_width));
    for (float& s : state) s = 0.5f + 0.1f * std::fabs(normal(random));
    view.optimizer_state = state.data();
  }
  Table(const Table& other)
      : memory(other.memory), scale(other.scale), state(other.state), exponents(other.exponents), view(other.view) {
    view.rows = memory.data();
    if (!exponents.empty()) view.scale_exponents = exponents.data();
    view.optimizer_state = state.data();
    if (other.view.scale != nullptr)
      view.scale = scale.empty() ? memory.data() + (other.view.scale - other.memory.data()) : scale.data();
  }

  float value(std::int64_t row, std::int64_t c) const {
    const auto* p = static_cast<const std::uint8_t*>(view.rows) +
                    row * view.row_stride * static_cast<std::int64_t>(size_of(view.dtype));
    std::uint16_t half = 0;
    float x = 0;
    switch (view.dtype) {
      case DType::f32: return std::memcpy(&x, p + 4 * c, 4), x;
      case DType::f16: return std::memcpy(&half, p + 2 * c, 2), decode_f16(half);
      case DType::bf16: return std::memcpy(&half, p + 2 * c, 2), decode_bf16(half);
      case DType::e4m3: return decode_e4m3(p[c]);
      case DType::u4: return static_cast<float>(p[c / 2] >> c % 2 * 4 & 15);
      default: return static_cast<float>(p[c]);
    }
  }
  float row_scale(std::int64_t row) const {
    if (view.scale_exponents != nullptr) return decode_e8m0(exponents[static_cast<std::size_t>(row)]);
    return view.scale != nullptr ? *view.scale_of(row) : 1.0f;
  }
  float row_bias(std::int64_t row) const {
    return view.dtype == DType::u8 || view.dtype == DType::u4 ? view.scale_of(row)[1] : 0.0f;
  }
};

struct Bags {
  std::int64_t batch;
  std::vector<std::int64_t> offsets{0}, values;
  std::vector<float> weights;

  // Empty bags, a long one, and where `outside` rows that no table has.
  Bags(std::int64_t tables, std::int64_t b, std::int64_t rows, bool outside, std::mt19937& random, int longest = 40)
      : batch(b) {
    for (std::int64_t i = 0; i < tables * b; ++i) {
      const auto lookups = i == 2 ? longest : static_cast<int>(draw(random) % 5);
      for (int k = 0; k < lookups; ++k) {
        values.push_back(static_cast<std::int64_t>(draw(random)) % rows);
        if (outside && draw(random) % 7 == 0) values.back() = k % 2 == 0 ? -1 - k : rows + k;
        weights.push_back(static_cast<float>(draw(random) % 1000) * 0.003f - 1.0f);
      }
      offsets.push_back(static_cast<std::int64_t>(values.size()));
    }
  }
  BagIndices view(std::int64_t tables, bool weighted) const {
    return {batch,          tables,
            values.data(),  static_cast<std::int64_t>(values.size()),
            offsets.data(), weighted ? weights.data() : nullptr};
  }
};

std::vector<TableView> views_of(std::vector<Table>& tables) {
  std::vector<TableView> views;
  for (Table& t : tables) views.push_back(t.view);
  return views;
}

constexpr std::int64_t kDims[] = {1, 3, 64, 130, 600}, kRows = 37, kBatch = 13;

std::vector<Table> tables_of(DType dtype, Place place, std::mt19937& random) {
  std::vector<Table> tables;
  for (const std::int64_t dim : kDims)
    tables.emplace_back(kRows, dim, dtype, place, tables.size() % 2 == 0 ? Pooling::sum : Pooling::mean, random);
  return tables;
}

// Element c of lookups [begin, end) pooled, or of one lookup.
float pooled(const Table& t, const Bags& bags, bool weighted, std::int64_t begin, std::int64_t end, std::int64_t c,
             bool mean) {
  float sum = 0, bias = 0;
  std::int64_t kept = 0;
  for (std::int64_t v = begin; v < end; ++v) {
    const std::int64_t row = bags.values[static_cast<std::size_t>(v)];
    if (row < 0 || row >= kRows) continue;
    ++kept;
    const float weight = weighted ? bags.weights[static_cast<std::size_t>(v)] : 1.0f;
    sum = std::fma(t.value(row, c), t.row_scale(row) * weight, sum);
    bias += t.row_bias(row) * weight;
  }
  sum += bias;
  return mean && kept > 1 ? sum / static_cast<float>(kept) : sum;
}

template <class Visit>
void for_each_format(Visit visit) {
  for (const DType dtype : kRowTypes)
    for (const Place place : {Place::separate, Place::in_row, Place::power_of_two}) {
      const bool coded = dtype == DType::e4m3 || dtype == DType::u8 || dtype == DType::u4;
      if ((place == Place::in_row && !coded) || (place == Place::power_of_two && dtype != DType::e4m3)) continue;
      SCOPED_TRACE("rows " + std::to_string(static_cast<int>(dtype)) + " scales " +
                   std::to_string(static_cast<int>(place)));
      visit(dtype, place);
    }
}

TEST(CudaBagForward, IsTheDefinition) {
  in_every_order([] {
    for_each_format([](DType dtype, Place place) {
      std::mt19937 random(5);
      std::vector<Table> tables = tables_of(dtype, place, random);
      const std::vector<TableView> views = views_of(tables);
      const auto count = static_cast<std::int64_t>(tables.size());
      const Bags bags(count, kBatch, kRows, true, random);
      const std::int64_t columns = std::accumulate(std::begin(kDims), std::end(kDims), std::int64_t{0});
      for (const bool weighted : {false, true})
        for (const bool bf16 : {false, true}) {
          const std::int64_t stride = columns + (weighted ? 0 : 2);  // one of them even
          std::vector<float> wide(static_cast<std::size_t>(kBatch * stride), 7e9f);
          std::vector<std::uint16_t> narrow(wide.size(), 0x7f80);
          void* out = bf16 ? static_cast<void*>(narrow.data()) : wide.data();
          std::int64_t skipped = 0;
          const BagForwardArgs args{views.data(),
                                    bags.view(count, weighted),
                                    Bounds::warn,
                                    {out, kBatch, columns, stride, bf16 ? DType::bf16 : DType::f32},
                                    &skipped};
          const Status status = cuda::bag_forward(args);
          ASSERT_TRUE(status.ok()) << status.message();
          EXPECT_EQ(skipped, std::count_if(bags.values.begin(), bags.values.end(),
                                           [](std::int64_t row) { return row < 0 || row >= kRows; }));
          std::int64_t column = 0;
          for (std::size_t t = 0; t < tables.size(); ++t)
            for (std::int64_t c = 0; c < kDims[t]; ++c, ++column)
              for (std::int64_t b = 0; b < kBatch; ++b) {
                const auto* offsets = &bags.offsets[t * kBatch + static_cast<std::size_t>(b)];
                const float want = pooled(tables[t], bags, weighted, offsets[0], offsets[1], c, t % 2 == 1);
                const auto at = static_cast<std::size_t>(b * stride + column);
                ASSERT_EQ(bf16 ? decode_bf16(narrow[at]) : wide[at], bf16 ? decode_bf16(encode_bf16(want)) : want)
                    << "table " << t << ", bag " << b << ", column " << c;
              }
        }
    });
  });
}

TEST(CudaRowLookup, IsTheDefinition) {
  in_every_order([] {
    for_each_format([](DType dtype, Place place) {
      std::mt19937 random(6);
      std::vector<Table> tables = tables_of(dtype, place, random);
      const std::vector<TableView> views = views_of(tables);
      const auto count = static_cast<std::int64_t>(tables.size());
      const Bags bags(count, kBatch, kRows, true, random);
      std::vector<std::vector<float>> outs;
      std::vector<MatrixView> matrices;
      for (std::size_t t = 0; t < tables.size(); ++t) {
        const std::int64_t rows = bags.offsets[(t + 1) * kBatch] - bags.offsets[t * kBatch];
        outs.emplace_back(static_cast<std::size_t>(rows * kDims[t]), 7e9f);
        matrices.push_back({outs.back().data(), rows, kDims[t], kDims[t], DType::f32});
      }
      ASSERT_TRUE(
          cuda::row_lookup({views.data(), bags.view(count, false), Bounds::ignore, matrices.data(), nullptr}).ok());
      for (std::size_t t = 0; t < tables.size(); ++t)
        for (std::int64_t r = 0; r < matrices[t].rows; ++r)
          for (std::int64_t c = 0; c < kDims[t]; ++c) {
            const std::int64_t v = bags.offsets[t * kBatch] + r;
            ASSERT_EQ(outs[t][static_cast<std::size_t>(r * kDims[t] + c)],
                      pooled(tables[t], bags, false, v, v + 1, c, false));
          }
    });
  });
}

TEST(CudaBagForward, MoreTablesThanALaunchTakes) {
  std::mt19937 random(8);
  std::vector<Table> tables;
  tables.reserve(300);
  for (int t = 0; t < 300; ++t) tables.emplace_back(kRows, 2, DType::f32, Place::separate, Pooling::sum, random);
  const std::vector<TableView> views = views_of(tables);
  const Bags bags(300, 2, kRows, false, random);
  std::vector<float> out(2 * 600);
  ASSERT_TRUE(
      cuda::bag_forward({views.data(), bags.view(300, false), Bounds::error, {out.data(), 2, 600, 600, DType::f32}})
          .ok());
  for (std::size_t t = 0; t < 300; ++t)
    for (std::size_t b = 0; b < 2; ++b)
      ASSERT_EQ(out[b * 600 + 2 * t + 1],
                pooled(tables[t], bags, false, bags.offsets[2 * t + b], bags.offsets[2 * t + b + 1], 1, false));
}

TEST(CudaBags, SayWhatIsWrongWithIndices) {
  std::mt19937 random(9);
  std::vector<Table> tables = tables_of(DType::f32, Place::separate, random);
  tables.resize(2, tables[0]);
  const std::vector<TableView> views = views_of(tables);
  std::vector<std::int64_t> values{0, 36, 1, 37, 2}, offsets{0, 1, 2, 3, 5};
  std::vector<float> out(2 * 4, 0.0f), grad(2 * 4, 1.0f);
  const auto forward = [&](Bounds bounds) {
    const BagIndices in{2, 2, values.data(), 5, offsets.data()};
    return cuda::bag_forward({views.data(), in, bounds, {out.data(), 2, 4, 4, DType::f32}});
  };
  const auto backward = [&](Bounds bounds) {
    BagBackwardArgs args{
        views.data(), {2, 2, values.data(), 5, offsets.data()}, bounds, {grad.data(), 2, 4, 4, DType::f32}, {}};
    return cuda::bag_backward(args);
  };
  const std::vector<float> before = tables[0].memory;
  for (const Status& status : {forward(Bounds::error), backward(Bounds::error)}) {
    EXPECT_EQ(status.code(), Code::out_of_range);
    EXPECT_NE(status.message().find("table 't', bag 1: row index 37 at position 3 is outside [0, 37)"),
              std::string::npos)
        << status.message();
  }
  EXPECT_EQ(tables[0].memory, before);  // nothing was written
  values[3] = 3;
  for (auto wrong : {std::vector<std::int64_t>{0, 1, 0, 3, 5},
                     {1, 1, 2, 3, 5},
                     {0, 1, 2, 3, 4},
                     {0, 1, 2, 3, 6},
                     {0, -1, 2, 3, 5}}) {
    offsets = wrong;
    EXPECT_EQ(forward(Bounds::error).code(), Code::invalid_argument);
    EXPECT_EQ(backward(Bounds::error).code(), Code::invalid_argument);
    EXPECT_TRUE(forward(Bounds::ignore).ok());  // no access outside, which the sanitizer would see
  }
}

struct Step {
  Kind kind;
  Rounding rounding;
  bool weighted, outside;
  float weight_decay;
  int longest = 40;
};

// One step on copies of the tables by `run`; the tables after it.
std::vector<Table> stepped(const std::vector<Table>& tables, const Bags& bags, const Step& step,
                           const std::vector<float>& grad, std::int64_t columns, std::vector<float>& grad_weights,
                           BagBackwardLauncher run) {
  std::vector<Table> copies(tables);
  const std::vector<TableView> views = views_of(copies);
  grad_weights.assign(bags.values.size(), 0.0f);
  BagBackwardArgs args{views.data(),
                       bags.view(static_cast<std::int64_t>(tables.size()), step.weighted),
                       Bounds::ignore,
                       {const_cast<float*>(grad.data()), kBatch, columns, columns, DType::f32},
                       {.kind = step.kind,
                        .lr = 0.1f,
                        .eps = 1e-6f,
                        .weight_decay = step.weight_decay,
                        .step = 3,
                        .rounding = step.rounding,
                        .seed = 11,
                        .first_table = 2}};
  if (step.weighted) args.grad_weights = grad_weights.data();
  const Status status = run(args);
  EXPECT_TRUE(status.ok()) << status.message();
  return copies;
}

std::vector<float> gradients(std::int64_t columns, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> grad(static_cast<std::size_t>(kBatch * columns));
  for (float& g : grad) g = normal(random);
  return grad;
}

BagBackwardLauncher on_cpu() { return Registry::instance().find("cpu.generic.bag_backward")->run.bag_backward; }

void check_step(const std::vector<Table>& tables, const Step& step, std::mt19937 random) {
  std::int64_t columns = 0;
  for (const Table& t : tables) columns += t.view.dim;
  const Bags bags(static_cast<std::int64_t>(tables.size()), kBatch, kRows, step.outside, random, step.longest);
  const std::vector<float> grad = gradients(columns, random);
  std::vector<float> want_weights, weights;
  const std::vector<Table> want = stepped(tables, bags, step, grad, columns, want_weights, on_cpu());
  const std::vector<Table> found = stepped(tables, bags, step, grad, columns, weights, cuda::bag_backward);
  for (std::size_t t = 0; t < tables.size(); ++t) {
    SCOPED_TRACE("table " + std::to_string(t) + " optimizer " + std::to_string(static_cast<int>(step.kind)));
    ASSERT_EQ(std::memcmp(found[t].memory.data(), want[t].memory.data(), 4 * want[t].memory.size()), 0);
    ASSERT_EQ(found[t].scale, want[t].scale);
    ASSERT_EQ(found[t].state, want[t].state);
  }
  float largest = 0;
  for (const float w : want_weights) largest = std::max(largest, std::fabs(w));
  for (std::size_t v = 0; v < weights.size(); ++v) ASSERT_NEAR(weights[v], want_weights[v], 1e-5f * largest);
}

TEST(CudaBagBackward, EqualsTheCpu) {
  in_every_order([] {
    for_each_format([](DType dtype, Place place) {
      if (place == Place::power_of_two) return;
      std::mt19937 random(21);
      std::vector<Table> tables;
      for (const std::int64_t dim : {1, 3, 64, 130})
        tables.emplace_back(kRows, dim, dtype, place, tables.size() % 2 == 0 ? Pooling::sum : Pooling::mean, random);
      const bool narrow = dtype != DType::f32;
      for (const Kind kind : {Kind::sgd, Kind::row_wise_adagrad, Kind::adagrad, Kind::adam}) {
        const bool odd = kind == Kind::sgd || kind == Kind::adagrad;
        check_step(tables, {kind, Rounding::stochastic, odd, false, odd ? 0.01f : 0.0f}, random);
        if (narrow && kind != Kind::adam) check_step(tables, {kind, Rounding::nearest, !odd, true, 0.0f}, random);
      }
      check_step(tables, {Kind::none, Rounding::nearest, true, true, 0.0f}, random);
    });
  });
}

// A row with more lookups than a segment holds: its sum has an order of its own, the same every time.
TEST(CudaBagBackward, LongRunsAreSummedInSegments) {
  std::mt19937 random(22);
  std::vector<Table> tables;
  for (int t = 0; t < 2; ++t) tables.emplace_back(2, 40, DType::f32, Place::separate, Pooling::sum, random);
  const Bags bags(2, kBatch, 2, false, random, 5000);
  const std::vector<float> grad = gradients(80, random);
  const Step step{Kind::adagrad, Rounding::nearest, true, false, 0.0f};
  std::vector<float> weights;
  const std::vector<Table> want = stepped(tables, bags, step, grad, 80, weights, on_cpu());
  std::vector<std::vector<float>> first;
  in_every_order([&] {
    const std::vector<Table> found = stepped(tables, bags, step, grad, 80, weights, cuda::bag_backward);
    for (std::size_t t = 0; t < 2; ++t) {
      for (std::size_t i = 0; i < 80; ++i) ASSERT_NEAR(found[t].memory[i], want[t].memory[i], 2e-5f);
      if (first.size() < 2) first.push_back(found[t].memory);
      ASSERT_EQ(found[t].memory, first[t]);
    }
  });
}

TEST(CudaBagBackward, RefusesWhatItDoesNotServe) {
  std::mt19937 random(23);
  const Table wide(2, 6145, DType::u8, Place::separate, Pooling::sum, random, 1);
  const std::int64_t value = 0, offsets[] = {0, 1};
  std::vector<float> grad(6145);
  const BagBackwardArgs args{
      &wide.view, {1, 1, &value, 1, offsets}, Bounds::error, {grad.data(), 1, 6145, 6145, DType::f32}, {}};
  EXPECT_EQ(cuda::bag_backward(args).code(), Code::unsupported);
}

}  // namespace
}  // namespace octavo::testing
