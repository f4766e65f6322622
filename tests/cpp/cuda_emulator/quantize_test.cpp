// The CUDA quantizers against those of the CPU, bit for bit.
#include "octavo/quantize.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels.hpp"
#include "octavo/float8.hpp"
#include "octavo/registry.hpp"
#include "orders.hpp"

namespace octavo::testing {
namespace {

constexpr DType kFormats[] = {DType::e4m3, DType::e5m2, DType::i8};

// Rows of many sizes, with zeros, infinities, NaN and rows whose scale underflows.
std::vector<float> values_of(std::int64_t rows, std::int64_t cols) {
  std::mt19937 random(static_cast<unsigned>(rows * 131 + cols));
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(rows * cols));
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] = normal(random) * std::exp2(static_cast<float>(static_cast<std::int64_t>(i) / cols % 40) - 20.0f);
  const auto at = [&](std::int64_t r, std::int64_t c) -> float& { return x[static_cast<std::size_t>(r * cols + c)]; };
  if (rows > 4) {
    for (std::int64_t c = 0; c < cols; ++c) at(0, c) = 0.0f, at(4, c) *= 1e-37f;
    at(1, cols - 1) = std::numeric_limits<float>::infinity();
    at(2, 0) = -std::numeric_limits<float>::infinity();
    at(3, cols / 2) = std::numeric_limits<float>::quiet_NaN();
    at(1, 0) = -0.0f;
  }
  return x;
}

struct Input {
  std::vector<float> f32;
  std::vector<std::uint16_t> narrow;  // bf16 or f16
  MatrixView view;
};

// x in `dtype`, rows `stride` apart; rounded values go back to x.
Input input_of(std::vector<float>& x, std::int64_t rows, std::int64_t cols, std::int64_t stride, DType dtype) {
  Input in;
  in.f32.assign(static_cast<std::size_t>(rows * stride), 7e9f);
  in.narrow.assign(in.f32.size(), 0x7f80);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < cols; ++c) {
      float& value = x[static_cast<std::size_t>(r * cols + c)];
      const auto to = static_cast<std::size_t>(r * stride + c);
      if (dtype == DType::bf16) value = decode_bf16(in.narrow[to] = encode_bf16(value));
      if (dtype == DType::f16) value = decode_f16(in.narrow[to] = encode_f16(value));
      in.f32[to] = value;
    }
  void* data = dtype == DType::f32 ? static_cast<void*>(in.f32.data()) : in.narrow.data();
  in.view = {data, rows, cols, stride, dtype};
  return in;
}

struct Codes {
  std::vector<std::uint8_t> codes;
  std::vector<float> scale;
  std::vector<std::uint8_t> e8m0 = {};  // mx: instead of scale
};

Codes on_cpu(std::vector<float> x, std::int64_t rows, std::int64_t cols, DType format, bool pow2,
             Scaling scaling = Scaling::row) {
  const bool rows_or_all = scaling == Scaling::row || scaling == Scaling::tensor, mx = scaling == Scaling::mx;
  // Of 128x128, and of all, fewer.
  const auto scales =
      static_cast<std::size_t>(std::max<std::int64_t>(rows * (rows_or_all ? 1 : scale_blocks(cols)), 1));
  const auto mx_scales = static_cast<std::size_t>(mx ? rows * ((cols + kMxBlock - 1) / kMxBlock) : 0);
  Codes out{std::vector<std::uint8_t>(x.size()), std::vector<float>(scales), std::vector<std::uint8_t>(mx_scales)};
  QuantizeArgs args{{x.data(), rows, cols, cols, DType::f32}, format, scaling, pow2};
  args.codes = out.codes.data();
  args.scale = out.scale.data();
  args.scale_e8m0 = out.e8m0.data();
  const char* kernel = rows_or_all ? "cpu.generic.quantize"
                       : mx        ? "cpu.generic.quantize_mx"
                                   : "cpu.generic.quantize_block";
  EXPECT_TRUE(Registry::instance().find(kernel)->run.quantize(args).ok());
  return out;
}

bool is_nan(std::uint8_t code, DType format) {
  return format == DType::e4m3 ? (code & 0x7f) == 0x7f : format == DType::e5m2 && (code & 0x7f) > 0x7c;
}

void expect_scale(float found, float wanted) {
  ASSERT_TRUE(found == wanted || (wanted != wanted && found != found)) << found << ", expected " << wanted;
}

// NaN has one code too many: its sign is nobody's business. `scale`: of rows; null: not looked at.
void expect_codes(const Codes& want, const std::uint8_t* codes, std::int64_t ld, const float* scale, std::int64_t rows,
                  std::int64_t cols, DType format) {
  for (std::int64_t r = 0; r < rows; ++r) {
    SCOPED_TRACE("row " + std::to_string(r));
    if (scale != nullptr) expect_scale(scale[r], want.scale[static_cast<std::size_t>(r)]);
    for (std::int64_t c = 0; c < ld; ++c) {
      const std::uint8_t w = c < cols ? want.codes[static_cast<std::size_t>(r * cols + c)] : std::uint8_t{0};
      const std::uint8_t found = codes[r * ld + c];
      ASSERT_TRUE(found == w || (is_nan(w, format) && is_nan(found, format)))
          << "row " << r << ", column " << c << ": found " << int{found} << ", expected " << int{w};
    }
  }
}

TEST(CudaQuantizeRow, EqualsTheCpu) {
  in_every_order([] {
    for (const auto& [rows, cols] : {std::pair{1, 1}, {7, 5}, {33, 64}, {9, 67}, {11, 515}, {5, 1030}, {5, 9000}})
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
        for (const std::int64_t padding : {0, 3, 16}) {
          if (cols > 1000 && padding == 3) continue;
          std::vector<float> x = values_of(rows, cols);
          const std::int64_t stride = padding == 16 ? (cols + 15) / 8 * 8 : cols + padding;  // 16: rows aligned
          const Input in = input_of(x, rows, cols, stride, dtype);
          const std::int64_t ld = padding == 0 ? cols : (cols + 15) / 16 * 16;
          for (const DType format : kFormats)
            for (const bool pow2 : {false, true}) {
              const Codes want = on_cpu(x, rows, cols, format, pow2);
              std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * ld), 0xaa);
              std::vector<float> scale(static_cast<std::size_t>(rows), -1.0f);
              QuantizeArgs args{in.view, format, Scaling::row, pow2};
              args.codes = codes.data();
              args.scale = scale.data();
              ASSERT_TRUE(cuda::quantize_row_padded(args, ld).ok());
              SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(cols) + " format " +
                           std::to_string(static_cast<int>(format)));
              expect_codes(want, codes.data(), ld, scale.data(), rows, cols, format);
            }
        }
  });
}

TEST(CudaQuantizeRow, MultipliesColumnsFirst) {
  constexpr std::int64_t kRows = 6, kCols = 300;
  std::vector<float> x = values_of(kRows, kCols), factor(kCols), product(x.size());
  const Input in = input_of(x, kRows, kCols, kCols, DType::bf16);
  for (std::size_t c = 0; c < factor.size(); ++c) factor[c] = 0.01f * static_cast<float>(c + 1);
  for (std::size_t i = 0; i < x.size(); ++i) product[i] = x[i] * factor[i % kCols];
  const Codes want = on_cpu(product, kRows, kCols, DType::e5m2, false);
  Codes found{std::vector<std::uint8_t>(x.size()), std::vector<float>(kRows)};
  QuantizeArgs args{in.view, DType::e5m2, Scaling::row};
  args.codes = found.codes.data();
  args.scale = found.scale.data();
  ASSERT_TRUE(cuda::quantize_row_padded(args, kCols, factor.data()).ok());
  expect_codes(want, found.codes.data(), kCols, found.scale.data(), kRows, kCols, DType::e5m2);
}

TEST(CudaQuantizeBlock, EqualsTheCpu) {
  in_every_order([] {
    for (const auto& [rows, cols] : {std::pair{1, 1}, {7, 5}, {5, 128}, {9, 131}, {6, 515}, {130, 257}, {261, 40}})
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
        for (const std::int64_t padding : {3, 16}) {
          if (rows > 100 && (padding == 3 || dtype != DType::bf16)) continue;
          std::vector<float> x = values_of(rows, cols);
          const Input in = input_of(x, rows, cols, padding == 16 ? (cols + 15) / 8 * 8 : cols + padding, dtype);
          for (const Scaling scaling : {Scaling::block_1x128, Scaling::block_128x128, Scaling::mx})
            for (const DType format : kFormats)
              for (const bool pow2 : {false, true}) {
                if (scaling == Scaling::mx && (pow2 || format == DType::i8)) continue;
                const Codes want = on_cpu(x, rows, cols, format, pow2, scaling);
                Codes found{std::vector<std::uint8_t>(x.size(), 0xaa), std::vector<float>(want.scale.size(), 0.0f),
                            std::vector<std::uint8_t>(want.e8m0.size(), 0xaa)};
                QuantizeArgs args{in.view, format, scaling, pow2};
                args.codes = found.codes.data();
                args.scale = found.scale.data();
                args.scale_e8m0 = found.e8m0.data();
                ASSERT_TRUE(cuda::quantize_block(args).ok());
                EXPECT_EQ(found.e8m0, want.e8m0);
                SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(cols) + " format " +
                             std::to_string(static_cast<int>(format)));
                for (std::size_t i = 0; i < want.scale.size(); ++i) expect_scale(found.scale[i], want.scale[i]);
                expect_codes(want, found.codes.data(), cols, nullptr, rows, cols, format);
              }
        }
  });
}

// As the GEMM reads them: zeros behind the codes, scales of a block of columns side by side, their rows padded.
TEST(CudaQuantizeBlock, ScalesLieTransposed) {
  for (const auto& [rows, cols] : {std::pair{1, 0}, {3, 5}, {6, 128}, {9, 300}})
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const std::int64_t ld = std::max(16, (cols + 15) / 16 * 16), scale_ld = (rows + 3) / 4 * 4;
      std::vector<float> x = cols == 0 ? std::vector<float>() : values_of(rows, cols);
      const Input in = input_of(x, rows, cols, cols + 8, dtype);
      const Codes want = on_cpu(x, rows, cols, DType::e4m3, false, Scaling::block_1x128);
      std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * ld), 0xaa);
      std::vector<float> scale(static_cast<std::size_t>(scale_blocks(ld) * scale_ld), -1.0f);
      QuantizeArgs args{in.view, DType::e4m3, Scaling::block_1x128};
      args.codes = codes.data();
      args.scale = scale.data();
      ASSERT_TRUE(cuda::quantize_block_transposed(args, ld, scale_ld).ok());
      expect_codes(want, codes.data(), ld, nullptr, rows, cols, DType::e4m3);
      for (std::int64_t b = 0; b < scale_blocks(ld); ++b)
        for (std::int64_t r = 0; r < scale_ld; ++r) {
          const float wanted = r >= rows   ? -1.0f  // not its own
                               : cols == 0 ? 1.0f
                                           : want.scale[static_cast<std::size_t>(r * scale_blocks(cols) + b)];
          expect_scale(scale[static_cast<std::size_t>(b * scale_ld + r)], wanted);
        }
    }
}

// Blocks whose largest magnitude lies at the ends of what E8M0 holds.
TEST(CudaQuantizeBlock, MxScalesReachTheirEnds) {
  std::vector<float> x;
  for (const float largest : {0.0f, 1e-45f, 1.17549435e-38f, 0x1p-119f, 0x1p-118f, 448.0f, 3.402823466e38f, 1.0f})
    for (std::int64_t i = 0; i < kMxBlock; ++i) x.push_back(i == 7 ? -largest : largest / 3.0f);
  const auto cols = static_cast<std::int64_t>(x.size());
  for (const DType format : {DType::e4m3, DType::e5m2}) {
    const Codes want = on_cpu(x, 1, cols, format, false, Scaling::mx);
    Codes found{std::vector<std::uint8_t>(x.size()), {}, std::vector<std::uint8_t>(want.e8m0.size())};
    QuantizeArgs args{{x.data(), 1, cols, cols, DType::f32}, format, Scaling::mx};
    args.codes = found.codes.data();
    args.scale_e8m0 = found.e8m0.data();
    ASSERT_TRUE(cuda::quantize_block(args).ok());
    EXPECT_EQ(found.e8m0, want.e8m0);
    EXPECT_EQ(found.codes, want.codes);
  }
}

TEST(CudaQuantizeBlock, OtherScalingsAreRefused) {
  QuantizeArgs args{{nullptr, 2, 2, 2, DType::f32}, DType::e4m3, Scaling::row};
  EXPECT_EQ(cuda::quantize_block(args).code(), Code::unsupported);
  for (const Scaling scaling : {Scaling::row, Scaling::tensor, Scaling::mx, Scaling::block_128x128}) {
    args.scaling = scaling;
    EXPECT_EQ(cuda::quantize_block_transposed(args, 16, 4).code(), Code::unsupported);
  }
}

// Contiguous matrices and rows with something between them, more steps than a grid has threads, nothing at all.
TEST(CudaQuantizeTensor, EqualsTheCpu) {
  in_every_order([] {
    for (const auto& [rows, cols] : {std::pair{1, 1}, {7, 5}, {0, 5}, {3, 0}, {9, 67}, {131, 515}, {2, 9000}})
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
        for (const std::int64_t padding : {0, 3, 16}) {
          if (rows > 100 && padding == 3) continue;
          std::vector<float> x = rows * cols == 0 ? std::vector<float>() : values_of(rows, cols);
          const Input in = input_of(x, rows, cols, padding == 16 ? (cols + 15) / 8 * 8 : cols + padding, dtype);
          for (const DType format : kFormats)
            for (const bool pow2 : {false, true}) {
              const Codes want = on_cpu(x, rows, cols, format, pow2, Scaling::tensor);
              std::vector<std::uint8_t> codes(x.size(), 0xaa);
              float scale = -1.0f;
              QuantizeArgs args{in.view, format, Scaling::tensor, pow2};
              args.codes = codes.data();
              args.scale = &scale;
              ASSERT_TRUE(cuda::quantize_tensor(args).ok());
              SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(cols) + " format " +
                           std::to_string(static_cast<int>(format)));
              expect_scale(scale, rows * cols == 0 ? 1.0f : want.scale[0]);
              expect_codes(want, codes.data(), cols, nullptr, rows, cols, format);
            }
        }
  });
}

TEST(CudaQuantizeTensor, OtherScalingsAreRefused) {
  QuantizeArgs args{{nullptr, 2, 2, 2, DType::f32}, DType::e4m3, Scaling::row};
  EXPECT_EQ(cuda::quantize_tensor(args).code(), Code::unsupported);
}

std::vector<float> transposed(const std::vector<float>& x, std::int64_t rows, std::int64_t cols) {
  std::vector<float> out(x.size());
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < cols; ++c)
      out[static_cast<std::size_t>(c * rows + r)] = x[static_cast<std::size_t>(r * cols + c)];
  return out;
}

TEST(CudaQuantizeBoth, EqualsTheCpuOnBothSides) {
  in_every_order([] {
    for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {5, 67}, {64, 64}, {131, 190}})
      for (const DType dtype : {DType::f32, DType::bf16})
        for (const int wanted : {1, 2, 3}) {
          std::vector<float> x = values_of(rows, cols);
          const Input in = input_of(x, rows, cols, cols + (wanted == 3 ? 0 : 5), dtype);
          std::vector<float> factor(static_cast<std::size_t>(cols), 0.375f), product = x;
          for (float& v : product) v *= 0.375f;
          const Codes by_row = on_cpu(product, rows, cols, DType::e5m2, false);
          const Codes by_column = on_cpu(transposed(x, rows, cols), cols, rows, DType::e4m3, false);
          const std::int64_t row_ld = (cols + 15) / 16 * 16, column_ld = wanted == 3 ? (rows + 15) / 16 * 16 : rows;
          std::vector<std::uint8_t> row_codes(static_cast<std::size_t>(rows * row_ld), 0xaa);
          std::vector<std::uint8_t> column_codes(static_cast<std::size_t>(cols * column_ld), 0xaa);
          std::vector<float> row_scale(static_cast<std::size_t>(rows)), column_scale(static_cast<std::size_t>(cols));
          cuda::QuantizeBoth args;
          args.x = in.view;
          args.column_factor = factor.data();
          args.row_format = DType::e5m2;
          args.column_format = DType::e4m3;
          if (wanted & 1) args.row_codes = row_codes.data(), args.row_ld = row_ld, args.row_scale = row_scale.data();
          if (wanted & 2)
            args.column_codes = column_codes.data(), args.column_ld = column_ld,
            args.column_scale = column_scale.data();
          ASSERT_TRUE(cuda::quantize_both(args).ok());
          SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(cols) + " wanted " + std::to_string(wanted));
          if (wanted & 1) expect_codes(by_row, row_codes.data(), row_ld, row_scale.data(), rows, cols, DType::e5m2);
          if (wanted & 2)
            expect_codes(by_column, column_codes.data(), column_ld, column_scale.data(), cols, rows, DType::e4m3);
        }
  });
}

TEST(CudaTransposeCodes, MovesEveryByte) {
  in_every_order([] {
    for (const auto& [n, k, ld] :
         {std::tuple<std::int64_t, std::int64_t, std::int64_t>{1, 1, 1}, {67, 130, 80}, {64, 64, 64}, {3, 200, 16}}) {
      std::vector<std::uint8_t> codes(static_cast<std::size_t>(n * k)), out(static_cast<std::size_t>(k * ld), 0xaa);
      for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i * 37 + 1);
      ASSERT_TRUE(cuda::transpose_codes(codes.data(), n, k, out.data(), ld, nullptr).ok());
      for (std::int64_t c = 0; c < k; ++c)
        for (std::int64_t r = 0; r < ld; ++r)
          ASSERT_EQ(out[static_cast<std::size_t>(c * ld + r)], r < n ? codes[static_cast<std::size_t>(r * k + c)] : 0);
    }
  });
}

TEST(CudaQuantize, RefusesWhatItDoesNotServe) {
  float x[4] = {}, scale[4];
  std::uint8_t codes[4];
  QuantizeArgs args{{x, 2, 2, 2, DType::f32}, DType::e4m3, Scaling::tensor};
  args.codes = codes;
  args.scale = scale;
  EXPECT_EQ(cuda::quantize_row(args).code(), Code::unsupported);
  args.format = DType::u8;
  EXPECT_EQ(cuda::quantize_row(args).code(), Code::invalid_argument);
  cuda::QuantizeBoth both;
  both.x = args.x;
  both.row_format = DType::i8;
  EXPECT_EQ(cuda::quantize_both(both).code(), Code::invalid_argument);
}

}  // namespace
}  // namespace octavo::testing
