// Gradients of linear layers for Hopper from end to end on the CPU, as layers_test.cpp runs the layers.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "gemm/layers.hpp"
#include "linear_case.hpp"
#include "octavo/float8.hpp"
#include "octavo/quantize.hpp"

namespace octavo::testing {
namespace {

Matrix normal(DType dtype, std::int64_t rows, std::int64_t cols, unsigned seed, std::int64_t padding = 0) {
  Matrix m(dtype, rows, cols, padding);
  std::mt19937 random(seed);
  std::normal_distribution<float> values;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < cols; ++c) m.set(r, c, values(random));
  return m;
}

double largest_error(const Matrix& found, const std::vector<double>& wanted) {
  double worst = 0, largest = 1e-30;
  for (std::int64_t r = 0; r < found.rows; ++r)
    for (std::int64_t c = 0; c < found.cols; ++c) {
      const double want = wanted[static_cast<std::size_t>(r * found.cols + c)];
      largest = std::max(largest, std::fabs(want));
      worst = std::max(worst, std::fabs(found.get(r, c) - want));
    }
  return std::isnan(worst) ? 1e9 : worst / largest;
}

// left^T [n, m] right [m, k] in FP64, of matrices as `round` sees them.
template <class Round>
std::vector<double> product_over_rows(const Matrix& left, const Matrix& right, Round round) {
  std::vector<double> out(static_cast<std::size_t>(left.cols * right.cols));
  for (std::int64_t r = 0; r < left.rows; ++r)
    for (std::int64_t n = 0; n < left.cols; ++n) {
      const double a = round(left, true, r, n);
      for (std::int64_t k = 0; k < right.cols; ++k)
        out[static_cast<std::size_t>(n * right.cols + k)] += a * round(right, false, r, k);
    }
  return out;
}

double as_bf16(const Matrix& x, bool, std::int64_t r, std::int64_t c) { return decode_bf16(encode_bf16(x.get(r, c))); }

TEST(CudaGradients, OfTheWeightInBf16) {
  struct Operands {
    DType grad, x;
    int padding;
  };
  for (const auto& [m, n, k] : {std::array{1, 1, 1}, {5, 8, 16}, {37, 9, 20}, {2048, 8, 8}, {2047, 3, 8}})
    for (const Operands& types :
         {Operands{DType::bf16, DType::bf16, 0}, {DType::f32, DType::bf16, 8}, {DType::bf16, DType::f32, 5}}) {
      Matrix grad = normal(types.grad, m, n, 1, types.padding), x = normal(types.x, m, k, 2, types.padding);
      Matrix found = normal(DType::f32, n, k, 3);
      const Status status = cuda::grad_weight_bf16_sm90({grad.view(), x.view(), found.view()});
      ASSERT_TRUE(status.ok()) << status.message();
      EXPECT_LE(largest_error(found, product_over_rows(grad, x, as_bf16)), 1e-5) << m << " " << n << " " << k;
    }
}

TEST(CudaGradients, OfTheInputInBf16FromWeightsOfEveryFormat) {
  for (const Numerics numerics : {Numerics::bf16, Numerics::e4m3_row, Numerics::int8_dynamic, Numerics::e4m3_block})
    for (const auto& [m, n, k] : {std::array{1, 1, 1}, {5, 8, 16}, {37, 9, 20}, {3, 40, 8}, {4, 16, 5}, {2, 131, 260}})
      for (const DType type : {DType::f32, DType::bf16}) {
        LinearCase layer({.m = m, .n = n, .k = k}, numerics);
        Matrix grad = normal(type, m, n, 4, 3), found(type, m, k, 11);  // columns of a wider matrix
        const Status status = cuda::grad_input_bf16_sm90({grad.view(), &*layer.weight, found.view()});
        ASSERT_TRUE(status.ok()) << status.message();
        std::vector<double> wanted(static_cast<std::size_t>(m * k));
        for (int r = 0; r < m; ++r)
          for (int j = 0; j < k; ++j)
            for (int c = 0; c < n; ++c) {
              const auto at = static_cast<std::size_t>(c * k + j);
              std::uint16_t bits = 0;
              if (numerics == Numerics::bf16) std::memcpy(&bits, &layer.codes[2 * at], 2);
              const float code = numerics == Numerics::bf16 ? decode_bf16(bits)
                                 : numerics == Numerics::int8_dynamic
                                     ? static_cast<float>(static_cast<std::int8_t>(layer.codes[at]))
                                     : decode_e4m3(layer.codes[at]);
              const float w = code * layer.weight->scale_at(c, j);
              wanted[static_cast<std::size_t>(r * k + j)] += as_bf16(grad, true, r, c) * decode_bf16(encode_bf16(w));
            }
        EXPECT_LE(largest_error(found, wanted), type == DType::f32 ? 1e-5 : 1.0 / 256) << m << " " << n << " " << k;
        for (int r = 0; r < m; ++r)
          for (int j = k; j < k + 11; ++j) EXPECT_EQ(found.get(r, j), 0.0f);
      }
}

// E5M2 and E4M3 with a scale per column, as the class rounds the operands of grad_weight.
struct RoundedColumns {
  const Matrix* matrices[2];
  std::vector<ScalePair> scales[2];
  RoundedColumns(const Matrix& left, const Matrix& right) : matrices{&left, &right} {
    for (int side = 0; side < 2; ++side)
      for (std::int64_t c = 0; c < matrices[side]->cols; ++c) {
        float amax = 0;
        for (std::int64_t r = 0; r < matrices[side]->rows; ++r)
          amax = std::max(amax, std::fabs(matrices[side]->get(r, c)));
        scales[side].push_back(scale_for(amax, side == 0 ? DType::e5m2 : DType::e4m3, false));
      }
  }
  double operator()(const Matrix& x, bool left, std::int64_t r, std::int64_t c) const {
    const ScalePair s = scales[left ? 0 : 1][static_cast<std::size_t>(c)];
    const float v = x.get(r, c) * s.multiplier;
    return static_cast<double>(s.scale) * (left ? decode_e5m2(encode_e5m2(v)) : decode_e4m3(encode_e4m3(v)));
  }
};

TEST(CudaGradients, OfTheWeightInEightBits) {
  for (const auto& [m, n, k] : {std::array{1, 1, 1}, {5, 8, 16}, {37, 9, 20}, {2048, 8, 8}, {2047, 3, 5}})
    for (const DType type : {DType::f32, DType::bf16}) {
      Matrix grad = normal(type, m, n, 1, 4), x = normal(type, m, k, 2, 3), found = normal(DType::f32, n, k, 3);
      const Status status = cuda::grad_weight_e4m3_row_sm90({grad.view(), x.view(), found.view()});
      ASSERT_TRUE(status.ok()) << status.message();
      EXPECT_LE(largest_error(found, product_over_rows(grad, x, RoundedColumns(grad, x))), 1e-5)
          << m << " " << n << " " << k;
    }
}

TEST(CudaGradients, OfTheInputInEightBits) {
  for (const auto& [m, n, k] : {std::array{1, 1, 1}, {5, 8, 16}, {37, 9, 20}, {3, 40, 8}, {4, 16, 5}})
    for (const DType type : {DType::f32, DType::bf16}) {
      LinearCase layer({.m = m, .n = n, .k = k}, Numerics::e4m3_row);
      Matrix grad = normal(type, m, n, 4, 3), found(type, m, k);
      const Status status = cuda::grad_input_e4m3_row_sm90({grad.view(), &*layer.weight, found.view()});
      ASSERT_TRUE(status.ok()) << status.message();
      std::vector<double> wanted(static_cast<std::size_t>(m * k));
      for (int r = 0; r < m; ++r) {
        float amax = 0;
        for (int c = 0; c < n; ++c)
          amax = std::max(amax, std::fabs(grad.get(r, c) * layer.scale[static_cast<std::size_t>(c)]));
        const ScalePair s = scale_for(amax, DType::e5m2, false);
        for (int c = 0; c < n; ++c) {
          const float folded = grad.get(r, c) * layer.scale[static_cast<std::size_t>(c)];
          const double g = static_cast<double>(s.scale) * decode_e5m2(encode_e5m2(folded * s.multiplier));
          for (int j = 0; j < k; ++j)
            wanted[static_cast<std::size_t>(r * k + j)] +=
                g * decode_e4m3(layer.codes[static_cast<std::size_t>(c * k + j)]);
        }
      }
      EXPECT_LE(largest_error(found, wanted), type == DType::f32 ? 1e-5 : 1.0 / 256) << m << " " << n << " " << k;
    }
}

// One cast of the gradient for both: the bits of two calls, and fewer kernels.
TEST(CudaGradients, OfBothAtOnceAreThoseOfEachAlone) {
  for (const auto& [m, n, k] : {std::array{1, 1, 1}, {5, 8, 16}, {37, 9, 20}, {2047, 3, 5}, {0, 4, 8}, {4, 3, 0}})
    for (const DType type : {DType::f32, DType::bf16}) {
      LinearCase layer({.m = m, .n = n, .k = k}, Numerics::e4m3_row);
      Matrix grad = normal(type, m, n, 4, 3), x = normal(type, m, k, 2, 5);
      Matrix alone_x(type, m, k), both_x = normal(type, m, k, 6);
      Matrix alone_w(DType::f32, n, k), both_w = normal(DType::f32, n, k, 7);
      ASSERT_TRUE(cuda::grad_input_e4m3_row_sm90({grad.view(), &*layer.weight, alone_x.view()}).ok());
      ASSERT_TRUE(cuda::grad_weight_e4m3_row_sm90({grad.view(), x.view(), alone_w.view()}).ok());
      const Status status = cuda::gradients_e4m3_row_sm90({grad.view(), &*layer.weight, both_x.view()},
                                                          {grad.view(), x.view(), both_w.view()});
      ASSERT_TRUE(status.ok()) << status.message();
      for (int r = 0; r < m; ++r)
        for (int c = 0; c < k; ++c) EXPECT_EQ(both_x.get(r, c), alone_x.get(r, c)) << m << " " << n << " " << k;
      for (int r = 0; r < n; ++r)
        for (int c = 0; c < k; ++c) EXPECT_EQ(both_w.get(r, c), alone_w.get(r, c)) << m << " " << n << " " << k;
    }
}

TEST(CudaGradients, OfNothingAreZeros) {
  Matrix grad(DType::f32, 0, 5), x(DType::f32, 0, 7), found = normal(DType::f32, 5, 7, 3);
  const std::vector<double> zeros(35);
  ASSERT_TRUE(cuda::grad_weight_bf16_sm90({grad.view(), x.view(), found.view()}).ok());
  EXPECT_EQ(largest_error(found, zeros), 0.0);
  found = normal(DType::f32, 5, 7, 3);
  ASSERT_TRUE(cuda::grad_weight_e4m3_row_sm90({grad.view(), x.view(), found.view()}).ok());
  EXPECT_EQ(largest_error(found, zeros), 0.0);
  LinearCase layer({.m = 3, .n = 0, .k = 4}, Numerics::e4m3_row);
  Matrix none(DType::f32, 3, 0), input = normal(DType::f32, 3, 4, 5);
  ASSERT_TRUE(cuda::grad_input_bf16_sm90({none.view(), &*layer.weight, input.view()}).ok());
  EXPECT_EQ(largest_error(input, std::vector<double>(12)), 0.0);
  input = normal(DType::f32, 3, 4, 5);
  ASSERT_TRUE(cuda::grad_input_e4m3_row_sm90({none.view(), &*layer.weight, input.view()}).ok());
  EXPECT_EQ(largest_error(input, std::vector<double>(12)), 0.0);
}

}  // namespace
}  // namespace octavo::testing
