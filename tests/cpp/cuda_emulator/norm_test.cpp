// The CUDA epilogue and its backward against those of the CPU; narrow outputs against the FP32 one, bit for bit.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "cpu/generic/linear_epilogue.hpp"
#include "kernels.hpp"
#include "octavo/float8.hpp"
#include "octavo/registry.hpp"
#include "orders.hpp"

namespace octavo::testing {
namespace {

constexpr NormKind kNorms[] = {NormKind::none, NormKind::layer, NormKind::rms, NormKind::block, NormKind::swish_rms};
constexpr Activation kActivations[] = {Activation::none, Activation::relu,      Activation::silu,
                                       Activation::gelu, Activation::hardswish, Activation::sigmoid};

using Floats = std::vector<float>;

Floats normal(std::int64_t count, unsigned seed, float scale = 1.0f, float shift = 0.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> draw;
  Floats x(static_cast<std::size_t>(count));
  for (float& v : x) v = draw(random) * scale + shift;
  return x;
}

// A matrix in FP32 or BF16 whose rows are `stride` apart; its numbers as FP32.
struct Matrix {
  std::int64_t rows, cols, stride;
  DType dtype;
  Floats f32;
  std::vector<std::uint16_t> bf16;

  Matrix(std::int64_t m, std::int64_t n, std::int64_t padding, DType type, const Floats& values = {})
      : rows(m), cols(n), stride(n + padding), dtype(type) {
    const auto size = static_cast<std::size_t>(m == 0 ? 0 : (m - 1) * stride + n);
    if (type == DType::f32)
      f32.assign(size, 7e9f);
    else
      bf16.assign(size, 0x7f80);
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(values.size()); ++i) {
      const auto to = static_cast<std::size_t>(i / n * stride + i % n);
      if (type == DType::f32)
        f32[to] = values[static_cast<std::size_t>(i)];
      else
        bf16[to] = encode_bf16(values[static_cast<std::size_t>(i)]);
    }
  }
  MatrixView view() {
    void* data = dtype == DType::f32 ? static_cast<void*>(f32.data()) : bf16.data();
    return {data, rows, cols, stride, dtype};
  }
  float at(std::int64_t r, std::int64_t c) const {
    const auto i = static_cast<std::size_t>(r * stride + c);
    return dtype == DType::f32 ? f32[i] : decode_bf16(bf16[i]);
  }
};

void expect_close(const Matrix& found, const Matrix& want, float bound) {
  float largest = 1e-30f;
  for (std::int64_t r = 0; r < want.rows; ++r)
    for (std::int64_t c = 0; c < want.cols; ++c) largest = std::max(largest, std::fabs(want.at(r, c)));
  for (std::int64_t r = 0; r < want.rows; ++r)
    for (std::int64_t c = 0; c < want.cols; ++c)
      ASSERT_NEAR(found.at(r, c), want.at(r, c), bound * largest) << "row " << r << ", column " << c;
}

void expect_close(const Floats& found, const Floats& want, float bound, const char* what) {
  float largest = 1e-30f;
  for (const float v : want) largest = std::max(largest, std::fabs(v));
  for (std::size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(found[i], want[i], bound * largest) << what << ' ' << i;
}

struct Case {
  std::int64_t m, n, ld;
  NormKind norm;
  Activation activation;
  int residual;  // 0: none, 1: after, 2: before
  DType residual_dtype;
  bool affine;
  std::int64_t block;
};

struct Layer {
  Floats bias, weight, shift;
  Matrix residual;
  Epilogue epilogue;
};

Layer layer_of(const Case& c) {
  Layer l{normal(c.n, 1),
          normal(c.n, 2, 0.2f, 1.0f),
          normal(c.n, 3, 0.3f),
          Matrix(c.m, c.n, c.residual == 2 ? 3 : 0, c.residual_dtype, normal(c.m * c.n, 4)),
          {}};
  l.epilogue.norm = c.norm;
  l.epilogue.activation = c.activation;
  l.epilogue.norm_block = c.block;
  if (c.affine && c.norm != NormKind::none && c.norm != NormKind::block) l.epilogue.norm_weight = l.weight.data();
  if (c.affine && c.norm == NormKind::layer) l.epilogue.norm_bias = l.shift.data();
  l.epilogue.residual_before_norm = c.residual == 2;
  if (c.residual != 0) l.epilogue.residual = l.residual.view();
  return l;
}

void check_forward(const Case& c) {
  SCOPED_TRACE("M " + std::to_string(c.m) + " N " + std::to_string(c.n) + " norm " +
               std::to_string(static_cast<int>(c.norm)) + " activation " +
               std::to_string(static_cast<int>(c.activation)) + " residual " + std::to_string(c.residual));
  const Layer l = layer_of(c);
  const Floats product = normal(c.m * c.n, 5, 2.0f, 0.3f);
  const std::int64_t wide = (c.n + 15) / 16 * 16;
  Floats rows(static_cast<std::size_t>(c.m * wide));
  for (std::int64_t r = 0; r < c.m; ++r)
    for (std::int64_t i = 0; i < c.n; ++i)
      rows[static_cast<std::size_t>(r * wide + i)] =
          product[static_cast<std::size_t>(r * c.n + i)] + (c.affine ? l.bias[static_cast<std::size_t>(i)] : 0.0f);
  Matrix want(c.m, c.n, 0, DType::f32), want_saved(c.m, c.n, 0, DType::f32);
  Epilogue on_cpu = l.epilogue;
  on_cpu.saved = want_saved.view();
  baseline::finish_rows(rows.data(), wide, 0, c.m, on_cpu, want.view());

  // Every output of the same numbers: FP32, BF16, codes; what the norm saw beside the first two.
  const auto run = [&](const MatrixView& y, const MatrixView& saved, float* scale) {
    Matrix z(c.m, c.n, c.ld - c.n, DType::f32, product);
    Epilogue e = l.epilogue;
    if (c.affine) e.bias = l.bias.data();
    e.saved = saved;
    ASSERT_TRUE(cuda::finish_linear(z.view(), e, y, nullptr, scale).ok());
  };
  Matrix y(c.m, c.n, c.residual, DType::f32), saved(c.m, c.n, 1, DType::f32);
  run(y.view(), saved.view(), nullptr);
  expect_close(y, want, 1e-5f);
  expect_close(saved, want_saved, 0.0f);
  Matrix half(c.m, c.n, 0, DType::bf16), half_saved(c.m, c.n, 0, DType::bf16);
  run(half.view(), half_saved.view(), nullptr);
  Floats exact;
  for (std::int64_t r = 0; r < c.m; ++r)
    for (std::int64_t i = 0; i < c.n; ++i) {
      exact.push_back(y.at(r, i));
      ASSERT_EQ(half.at(r, i), decode_bf16(encode_bf16(y.at(r, i))));
      ASSERT_EQ(half_saved.at(r, i), decode_bf16(encode_bf16(saved.at(r, i))));
    }
  for (const DType format : {DType::e4m3, DType::i8}) {
    const auto m = static_cast<std::size_t>(c.m);
    std::vector<std::uint8_t> codes(exact.size()), want_codes(exact.size());
    Floats scale(m, -1.0f), want_scale(m);
    run({codes.data(), c.m, c.n, c.n, format}, {}, scale.data());
    QuantizeArgs args{{exact.data(), c.m, c.n, c.n, DType::f32}, format, Scaling::row};
    args.codes = want_codes.data();
    args.scale = want_scale.data();
    ASSERT_TRUE(Registry::instance().find("cpu.generic.quantize")->run.quantize(args).ok());
    ASSERT_EQ(scale, want_scale);
    ASSERT_EQ(codes, want_codes);
  }

  // What the norm sees in BF16, left as it is, gives the bits that the same numbers in FP32 give.
  Matrix seen(c.m, c.n, c.ld - c.n, DType::bf16, want_saved.f32), copy = seen;
  Floats widened;
  for (std::int64_t r = 0; r < c.m; ++r)
    for (std::int64_t i = 0; i < c.n; ++i) widened.push_back(seen.at(r, i));
  Epilogue with_all = l.epilogue, rest = l.epilogue;
  with_all.bias = l.bias.data();
  if (rest.residual_before_norm) rest.residual = {};
  const auto both = [&](const MatrixView& narrow, const MatrixView& wide, float* narrow_scale, float* wide_scale) {
    Matrix z(c.m, c.n, 0, DType::f32, widened);
    ASSERT_TRUE(cuda::finish_linear(seen.view(), with_all, narrow, nullptr, narrow_scale).ok());
    ASSERT_TRUE(cuda::finish_linear(z.view(), rest, wide, nullptr, wide_scale).ok());
    ASSERT_EQ(seen.bf16, copy.bf16);
  };
  for (const DType type : {DType::f32, DType::bf16}) {
    Matrix found(c.m, c.n, 1, type), wanted(c.m, c.n, 1, type);
    both(found.view(), wanted.view(), nullptr, nullptr);
    ASSERT_EQ(found.f32, wanted.f32);
    ASSERT_EQ(found.bf16, wanted.bf16);
  }
  for (const DType format : {DType::e4m3, DType::i8}) {
    const auto m = static_cast<std::size_t>(c.m);
    std::vector<std::uint8_t> found(exact.size()), wanted(exact.size());
    Floats scale(m, -1.0f), wanted_scale(m);
    both({found.data(), c.m, c.n, c.n, format}, {wanted.data(), c.m, c.n, c.n, format}, scale.data(),
         wanted_scale.data());
    ASSERT_EQ(scale, wanted_scale);
    ASSERT_EQ(found, wanted);
  }
}

TEST(CudaFinishLinear, EqualsTheCpu) {
  in_every_order([] {
    int turn = 0;
    for (const NormKind norm : kNorms)
      for (const Activation activation : kActivations) {
        if (norm == NormKind::swish_rms && activation != Activation::none) continue;
        const auto [n, ld] = std::array<std::pair<std::int64_t, std::int64_t>, 5>{
            {{5, 8}, {67, 72}, {331, 336}, {64, 64}, {520, 520}}}[static_cast<std::size_t>(turn % 5)];
        const DType residual = turn % 2 == 0 ? DType::f32 : DType::bf16;
        check_forward({turn % 2 == 0 ? 3 : 19, n, ld, norm, activation, turn % 3, residual, turn % 4 != 3,
                       turn % 2 == 0 ? 256 : 44});
        ++turn;
      }
  });
}

// Columns beyond what registers keep, one column, and more spans than one.
TEST(CudaFinishLinear, AnyWidth) {
  in_every_order([] {
    for (const NormKind norm : kNorms)
      for (const std::int64_t n : {1, 1030, 8200})
        check_forward({2, n, n + 3, norm, Activation::none, 1, DType::f32, true, n == 8200 ? 8196 : 256});
  });
}

// Blocks that a warp has at once, up to what registers keep of a row: read once, and nothing goes back to memory.
TEST(CudaFinishLinear, BlocksOfAWarpBecomeCodesInOnePass) {
  in_every_order([] {
    int turn = 0;
    for (const std::int64_t n : {257, 512, 1024, 1028, 4000, 8192}) {
      check_forward({n > 1024 ? 2 : 9, n, n + turn % 2, NormKind::block,
                     turn % 2 == 0 ? Activation::hardswish : Activation::none, turn % 3, DType::f32, turn % 2 == 0,
                     256});
      ++turn;
      const Matrix product(2, n, 0, DType::f32, normal(2 * n, 6));
      Matrix z = product;
      Epilogue e;
      e.norm = NormKind::block;
      std::vector<std::uint8_t> codes(static_cast<std::size_t>(2 * n));
      Floats scale(2);
      ASSERT_TRUE(cuda::finish_linear(z.view(), e, {codes.data(), 2, n, n, DType::e4m3}, nullptr, scale.data()).ok());
      EXPECT_EQ(z.f32, product.f32);
    }
  });
}

TEST(CudaFinishLinear, EmptyIsNothing) {
  Epilogue e;
  EXPECT_TRUE(cuda::finish_linear({}, e, {nullptr, 0, 5, 5, DType::f32}, nullptr).ok());
  EXPECT_TRUE(cuda::finish_linear({}, e, {nullptr, 5, 0, 0, DType::f32}, nullptr).ok());
}

struct Gradients {
  Matrix z, extra;
  Floats bias, weight, shift;
};

Gradients backward_of(const Case& c, const Layer& l, Matrix& z, Matrix& grad, DType out, EpilogueBackwardLauncher run) {
  const auto n = static_cast<std::size_t>(c.n);
  Gradients g{Matrix(c.m, c.n, 0, out), Matrix(c.m, c.n, 0, DType::f32), Floats(n, 7e9f), Floats(n, 7e9f),
              Floats(n, 7e9f)};
  EpilogueBackwardArgs args{};
  args.z = z.view();
  args.grad = grad.view();
  args.epilogue = l.epilogue;
  args.grad_z = g.z.view();
  args.grad_extra = g.extra.view();
  args.grad_bias = g.bias.data();
  if (l.epilogue.norm_weight != nullptr) args.grad_norm_weight = g.weight.data();
  if (l.epilogue.norm_bias != nullptr) args.grad_norm_bias = g.shift.data();
  EXPECT_TRUE(run(args).ok());
  return g;
}

void check_backward(const Case& c, DType dtype) {
  SCOPED_TRACE("M " + std::to_string(c.m) + " N " + std::to_string(c.n) + " norm " +
               std::to_string(static_cast<int>(c.norm)) + " activation " +
               std::to_string(static_cast<int>(c.activation)));
  const Layer l = layer_of(c);
  Matrix z(c.m, c.n, 0, dtype, normal(c.m * c.n, 6, 2.0f, 0.3f));
  Matrix grad(c.m, c.n, c.ld - c.n, dtype, normal(c.m * c.n, 7));
  const DType out = c.m % 2 == 0 ? DType::f32 : DType::bf16;
  const auto cpu = Registry::instance().find("cpu.generic.linear_epilogue_backward")->run.epilogue_backward;
  const Gradients want = backward_of(c, l, z, grad, DType::f32, cpu);
  const Gradients found = backward_of(c, l, z, grad, out, cuda::linear_epilogue_backward);
  expect_close(found.z, want.z, out == DType::f32 ? 1e-5f : 0x1p-8f);
  expect_close(found.extra, want.extra, 1e-5f);
  expect_close(found.bias, want.bias, 1e-5f, "bias");
  if (l.epilogue.norm_weight != nullptr) expect_close(found.weight, want.weight, 1e-5f, "norm weight");
  if (l.epilogue.norm_bias != nullptr) expect_close(found.shift, want.shift, 1e-5f, "norm bias");
}

TEST(CudaEpilogueBackward, EqualsTheCpu) {
  in_every_order([] {
    int turn = 0;
    for (const NormKind norm : kNorms)
      for (const Activation activation : kActivations) {
        if (norm == NormKind::swish_rms && activation != Activation::none) continue;
        const std::int64_t n = std::array<std::int64_t, 4>{5, 67, 331, 520}[static_cast<std::size_t>(turn % 4)];
        check_backward({turn % 3 == 0 ? 2 : 37, n, n + turn % 2, norm, activation, 0, DType::f32, turn % 4 != 3,
                        turn % 2 == 0 ? 256 : 44},
                       turn % 3 == 1 ? DType::bf16 : DType::f32);
        ++turn;
      }
  });
}

TEST(CudaEpilogueBackward, AnyShape) {
  in_every_order([] {
    for (const NormKind norm : kNorms) {
      check_backward({300, 9, 9, norm, Activation::gelu, 0, DType::f32, true, 256}, DType::f32);  // several chunks
      check_backward({2, 4200, 4200, norm, Activation::silu, 0, DType::f32, true, 4100}, DType::f32);
    }
  });
}

TEST(CudaEpilogueBackward, NoRowsSumToZero) {
  Floats bias(3, 7.0f);
  EpilogueBackwardArgs args{};
  args.grad = {nullptr, 0, 3, 3, DType::f32};
  args.grad_bias = bias.data();
  ASSERT_TRUE(cuda::linear_epilogue_backward(args).ok());
  EXPECT_EQ(bias, Floats(3, 0.0f));
}

}  // namespace
}  // namespace octavo::testing
