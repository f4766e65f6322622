// The CUDA products of pairs against FP64; on small integers, and in class fp32 on a CPU with FMA, bit for bit.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels.hpp"
#include "octavo/float8.hpp"
#include "octavo/isa.hpp"
#include "octavo/registry.hpp"
#include "orders.hpp"

namespace octavo::testing {
namespace {

// Numbers of [batch, rows, cols] in FP32 or BF16, `gap` unused elements between samples and between lines: memory of
// exactly what a view may touch, so that a sanitizer sees every access beyond.
struct Operand {
  std::vector<float> f32;
  std::vector<std::uint16_t> bf16;
  BatchView view;

  Operand(std::int64_t batch, std::int64_t rows, std::int64_t cols, DType dtype, bool across, std::int64_t gap,
          unsigned seed, bool integers) {
    const std::int64_t line = (across ? rows : cols) + gap, sample = line * (across ? cols : rows) + gap;
    const std::int64_t last = (across ? cols : rows) - 1;
    const std::int64_t size = rows * cols == 0 ? 0 : (batch - 1) * sample + last * line + (across ? rows : cols);
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::uniform_int_distribution<int> small(-8, 8);  // exact in BF16 and in every sum
    for (std::int64_t i = 0; i < size; ++i) {
      const float v = integers ? static_cast<float>(small(random)) : normal(random);
      dtype == DType::f32 ? f32.push_back(v) : bf16.push_back(encode_bf16(v));
    }
    const void* data = dtype == DType::f32 ? static_cast<const void*>(f32.data()) : bf16.data();
    view = {data, rows, cols, sample, across ? 1 : line, across ? line : 1, dtype};
  }
  float at(std::int64_t b, std::int64_t i, std::int64_t k) const {
    const auto at = static_cast<std::size_t>(b * view.batch_stride + i * view.row_stride + k * view.col_stride);
    return view.dtype == DType::f32 ? f32[at] : decode_bf16(bf16[at]);
  }
};

bool kept(Pairs pairs, std::int64_t i, std::int64_t j) {
  return pairs == Pairs::all || (pairs == Pairs::lower ? j < i : j > i);
}

struct Case {
  std::int64_t batch, rows, columns, depth;
  Pairs x_pairs = Pairs::all, pairs = Pairs::all;
  DType dtype = DType::f32, out = DType::f32;
  bool across = false, integers = false, own = false;  // own: y is x
  std::int64_t gap = 0, out_gap = 0, row_gap = 0;
};

// Where (i, j) of a sample lies among its kept pairs.
std::int64_t place(const Case& c, Pairs pairs, std::int64_t i, std::int64_t j, std::int64_t n) {
  if (pairs == Pairs::all) return i * (c.columns + c.row_gap) + j;
  std::int64_t at = 0;
  for (std::int64_t r = 0; r < i; ++r) at += pairs == Pairs::lower ? r : n - 1 - r;
  return at + (pairs == Pairs::lower ? j : j - i - 1);
}

struct Problem {
  Operand x, y;
  PairwiseArgs args;
  std::vector<float> f32;
  std::vector<std::uint16_t> bf16;
  std::int64_t per_sample, first = 3;  // of out: elements of a sample, an address that is no multiple of 16 bytes

  explicit Problem(const Case& c)
      : x(c.x_pairs == Pairs::all
              ? Operand(c.batch, c.rows, c.depth, c.dtype, c.across, c.gap, 1, c.integers)
              : Operand(c.batch, 1, c.depth * (c.depth - 1) / 2, c.dtype, c.across, c.gap, 1, c.integers)),
        y(c.batch, c.columns, c.depth, c.dtype == DType::f32 && c.gap == 1 ? DType::bf16 : c.dtype, c.across, c.gap, 2,
          c.integers) {
    per_sample = c.pairs == Pairs::all ? (c.rows - 1) * (c.columns + c.row_gap) + c.columns : c.rows * (c.rows - 1) / 2;
    args.batch = c.batch;
    args.x = x.view;
    args.x_pairs = c.x_pairs;
    args.y = c.own ? x.view : y.view;
    args.pairs = c.pairs;
    args.out_batch_stride = per_sample + c.out_gap;
    args.out_row_stride = c.columns + c.row_gap;
    args.out_dtype = c.out;
    const auto size = static_cast<std::size_t>(first + c.batch * (per_sample + c.out_gap));
    f32.assign(c.out == DType::f32 ? size : 0, -777.0f);
    bf16.assign(c.out == DType::bf16 ? size : 0, 0x7e7e);
    args.out = c.out == DType::f32 ? static_cast<void*>(f32.data() + first) : bf16.data() + first;
  }

  // What pair (i, j) takes of column k, as the class rounds it.
  double factor(const Case& c, const Operand& o, bool is_x, std::int64_t b, std::int64_t i, std::int64_t k,
                Numerics numerics) const {
    float v;
    if (is_x && c.x_pairs != Pairs::all) {
      if (i == k) return 0;
      const bool swapped = !kept(c.x_pairs, i, k);
      v = o.at(b, 0, place(c, c.x_pairs, swapped ? k : i, swapped ? i : k, c.depth));
    } else {
      v = o.at(b, i, k);
    }
    return static_cast<double>(numerics == Numerics::bf16 ? decode_bf16(encode_bf16(v)) : v);
  }
};

void check(const Case& c, Numerics numerics) {
  SCOPED_TRACE("B " + std::to_string(c.batch) + " F " + std::to_string(c.rows) + " G " + std::to_string(c.columns) +
               " D " + std::to_string(c.depth) + " pairs " + std::to_string(static_cast<int>(c.x_pairs)) + " -> " +
               std::to_string(static_cast<int>(c.pairs)) + (c.across ? " across" : "") + " gap " +
               std::to_string(c.gap) + " type " + std::to_string(static_cast<int>(c.dtype)) + " -> " +
               std::to_string(static_cast<int>(c.out)));
  Problem p(c);
  const auto run = numerics == Numerics::fp32 ? cuda::pairwise_dots_fp32 : cuda::pairwise_dots_bf16;
  const Status status = run(p.args);
  ASSERT_TRUE(status.ok()) << status.message();

  // Elements in the order of memory: outside the kept pairs nothing was written.
  std::vector<char> written(p.f32.size() + p.bf16.size());
  double worst = 0, largest = 1e-30;
  for (std::int64_t b = 0; b < c.batch; ++b)
    for (std::int64_t i = 0; i < c.rows; ++i)
      for (std::int64_t j = 0; j < c.columns; ++j) {
        if (!kept(c.pairs, i, j)) continue;
        double want = 0;
        for (std::int64_t k = 0; k < c.depth; ++k)
          want += p.factor(c, p.x, true, b, i, k, numerics) * p.factor(c, c.own ? p.x : p.y, c.own, b, j, k, numerics);
        const auto at =
            static_cast<std::size_t>(p.first + b * p.args.out_batch_stride + place(c, c.pairs, i, j, c.rows));
        written[at] = 1;
        const float found = c.out == DType::f32 ? p.f32[at] : decode_bf16(p.bf16[at]);
        if (c.integers && c.out == DType::f32) {
          ASSERT_EQ(found, static_cast<float>(want)) << b << ' ' << i << ' ' << j;
        }
        worst = std::max(worst, std::fabs(static_cast<double>(found) - want));
        largest = std::max(largest, std::fabs(want));
      }
  EXPECT_LE(worst, (c.out == DType::f32 ? 2e-6 : 0x1p-8) * largest);
  for (std::size_t at = 0; at < written.size(); ++at)
    if (!written[at]) {
      ASSERT_TRUE(c.out == DType::f32 ? p.f32[at] == -777.0f : p.bf16[at] == 0x7e7e) << "wrote beside at " << at;
    }
}

void check_both(const Case& c) {
  check(c, Numerics::fp32);
  check(c, Numerics::bf16);
}

// F, G, D around the units of 16, tiles of 64 and panels of 32 and 64 columns; samples that share blocks.
TEST(CudaPairwise, EverySize) {
  in_every_order([] {
    int turn = 0;
    for (const auto& [b, f, g, d] : std::vector<std::array<std::int64_t, 4>>{{1, 1, 1, 1},
                                                                             {13, 2, 20, 7},
                                                                             {37, 5, 9, 16},
                                                                             {3, 16, 16, 64},
                                                                             {14, 27, 27, 40},
                                                                             {2, 64, 24, 130},
                                                                             {2, 3, 270, 33},
                                                                             {1, 81, 70, 65}}) {
      Case c{b, f, g, d};
      c.dtype = turn % 2 == 0 ? DType::bf16 : DType::f32;
      c.out = turn % 3 == 0 ? DType::bf16 : DType::f32;
      c.integers = turn % 3 == 1;
      c.across = turn % 4 >= 2;
      c.gap = turn % 3;
      c.out_gap = turn % 2 == 0 ? 0 : 5;
      c.row_gap = turn % 4 == 1 ? 3 : 0;
      check_both(c);
      ++turn;
    }
  });
}

TEST(CudaPairwise, TypesStridesAndOutputs) {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const DType out : {DType::f32, DType::bf16})
      for (const bool across : {false, true})
        for (const std::int64_t gap : {0, 1, 8}) {
          Case c{9, 19, 24, 48};
          c.dtype = dtype;
          c.out = out;
          c.across = across;
          c.gap = gap;
          c.out_gap = 40 + gap;
          c.row_gap = gap == 8 ? 8 : 0;
          check_both(c);
        }
}

TEST(CudaPairwise, Triangles) {
  in_every_order([] {
    int turn = 0;
    for (const Pairs pairs : {Pairs::all, Pairs::lower, Pairs::upper})
      for (const std::int64_t f : {1, 2, 17, 27, 64, 131}) {
        Case c{f > 64 ? 1 : 7, f, f, 21};
        c.pairs = pairs;
        c.own = true;
        c.across = turn % 3 == 1;
        c.out = turn % 2 == 0 ? DType::f32 : DType::bf16;
        c.out_gap = turn % 4;
        check_both(c);
        ++turn;
      }
  });
}

TEST(CudaPairwise, TriangleOperand) {
  for (const Pairs pairs : {Pairs::lower, Pairs::upper})
    for (const std::int64_t f : {1, 2, 27, 70})
      for (const DType dtype : {DType::f32, DType::bf16}) {
        Case c{5, f, 18, f};
        c.x_pairs = pairs;
        c.dtype = dtype;
        c.integers = f == 27;
        check_both(c);
      }
}

// The same sums in the same order as the CPU's, rounded once each.
TEST(CudaPairwise, Fp32EqualsTheCpuBitForBit) {
  if (!cpu_features().avx2) GTEST_SKIP() << "the baseline kernels round products and sums";
  for (const bool across : {false, true}) {
    Case c{6, 27, 33, 75};
    c.across = across;
    Problem found(c), want(c);
    ASSERT_TRUE(cuda::pairwise_dots_fp32(found.args).ok());
    ASSERT_TRUE(Registry::instance().find("cpu.generic.pairwise_dots.fp32")->run.pairwise_dots(want.args).ok());
    EXPECT_EQ(found.f32, want.f32);
  }
}

TEST(CudaPairwise, NothingToDo) {
  for (const auto& [b, f, g] : std::vector<std::array<std::int64_t, 3>>{{0, 3, 4}, {2, 0, 4}, {2, 3, 0}}) {
    PairwiseArgs args;
    args.batch = b;
    args.x.rows = f;
    args.y.rows = g;
    args.x.cols = args.y.cols = 4;
    EXPECT_TRUE(cuda::pairwise_dots_bf16(args).ok());
  }
  Case c{3, 5, 6, 0};  // sums of nothing
  check_both(c);
}

TEST(CudaPairwise, NotFiniteValuesStayInTheirPairs) {
  Case c{2, 20, 20, 6};
  c.own = true;
  Problem p(c);
  p.x.f32[3 * 6 + 2] = NAN;
  p.x.f32[120 + 4 * 6 + 1] = INFINITY;
  ASSERT_TRUE(cuda::pairwise_dots_bf16(p.args).ok());
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t i = 0; i < 20; ++i)
      for (std::int64_t j = 0; j < 20; ++j) {
        const float v = p.f32[static_cast<std::size_t>(p.first + b * 400 + i * 20 + j)];
        const bool touched = b == 0 ? i == 3 || j == 3 : i == 4 || j == 4;
        EXPECT_EQ(std::isfinite(v), !touched) << b << ' ' << i << ' ' << j;
      }
}

}  // namespace
}  // namespace octavo::testing
