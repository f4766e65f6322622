// Every quantizer of the registry against the scalar definition, bit for bit, at every instruction set level.
#include "octavo/quantize.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>

#include "levels.hpp"
#include "octavo/float8.hpp"
#include "octavo/registry.hpp"

namespace octavo::testing {
namespace {

std::uint8_t encode(float v, DType format) {
  if (format == DType::e4m3) return encode_e4m3(v);
  if (format == DType::e5m2) return encode_e5m2(v);
  const float clamped = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v == v ? v : 0.0f;
  return static_cast<std::uint8_t>(static_cast<std::int8_t>(std::nearbyint(clamped)));
}

struct Expected {
  std::vector<std::uint8_t> codes;
  std::vector<float> scale;
};

Expected define(const std::vector<float>& x, std::size_t rows, std::size_t cols, DType format, Scaling scaling,
                bool pow2) {
  Expected out;
  const std::size_t groups = scaling == Scaling::row ? rows : 1, size = scaling == Scaling::row ? cols : rows * cols;
  for (std::size_t g = 0; g < groups; ++g) {
    float largest = 0.0f;
    bool nan = false;
    for (std::size_t i = g * size; i < (g + 1) * size; ++i) {
      if (std::isfinite(x[i])) largest = std::max(largest, std::fabs(x[i]));
      nan = nan || std::isnan(x[i]);
    }
    const ScalePair pair = scale_for(largest, format, pow2);
    out.scale.push_back(format == DType::i8 && nan ? std::numeric_limits<float>::quiet_NaN() : pair.scale);
    for (std::size_t i = g * size; i < (g + 1) * size; ++i) out.codes.push_back(encode(x[i] * pair.multiplier, format));
  }
  return out;
}

TEST(Quantize, EveryKernelEqualsTheDefinition) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  at_every_level([&] {
    for (const auto& [rows, cols] : {std::pair{1, 1}, {3, 16}, {5, 67}, {17, 515}, {2, 40000}})
      for (const bool half : {false, true}) {
        constexpr std::size_t padding = 3;
        const auto m = static_cast<std::size_t>(rows), k = static_cast<std::size_t>(cols);
        std::vector<float> values(m * k);
        for (std::size_t i = 0; i < values.size(); ++i)
          values[i] = normal(random) * std::exp2(static_cast<float>(i / k % 40) - 20.0f);
        if (m > 4) {
          for (std::size_t j = 0; j < k; ++j) values[j] = 0.0f;
          values[k + 1] = std::numeric_limits<float>::infinity();
          values[2 * k] = -std::numeric_limits<float>::infinity();
          values[3 * k + k / 2] = std::numeric_limits<float>::quiet_NaN();
          for (std::size_t j = 0; j < k; ++j) values[4 * k + j] *= 1e-37f;
        }
        std::vector<float> f32(m * (k + padding));
        std::vector<std::uint16_t> bf16(m * (k + padding));
        for (std::size_t r = 0; r < m; ++r)
          for (std::size_t j = 0; j < k; ++j) {
            if (half) values[r * k + j] = decode_bf16(encode_bf16(values[r * k + j]));
            f32[r * (k + padding) + j] = values[r * k + j];
            bf16[r * (k + padding) + j] = encode_bf16(values[r * k + j]);
          }
        for (const DType format : {DType::e4m3, DType::e5m2, DType::i8})
          for (const Scaling scaling : {Scaling::row, Scaling::tensor})
            for (const bool pow2 : {false, true}) {
              const Expected want = define(values, m, k, format, scaling, pow2);
              for (const KernelInfo* kernel : Registry::instance().all()) {
                if (kernel->op != Op::quantize || kernel->run.quantize == nullptr || !kernel->is_supported()) continue;
                SCOPED_TRACE(kernel->name + " format " + std::to_string(static_cast<int>(format)));
                std::vector<std::uint8_t> codes(m * k);
                std::vector<float> scale(want.scale.size());
                void* data = half ? static_cast<void*>(bf16.data()) : static_cast<void*>(f32.data());
                const MatrixView view{data, rows, cols, cols + static_cast<std::int64_t>(padding),
                                      half ? DType::bf16 : DType::f32};
                const Status status = kernel->run.quantize({.x = view,
                                                            .format = format,
                                                            .scaling = scaling,
                                                            .pow2_scale = pow2,
                                                            .codes = codes.data(),
                                                            .scale = scale.data()});
                if (status.code() == Code::unsupported) continue;
                ASSERT_TRUE(status.ok()) << status.message();
                for (std::size_t i = 0; i < scale.size(); ++i)
                  ASSERT_TRUE(scale[i] == want.scale[i] || (std::isnan(scale[i]) && std::isnan(want.scale[i])));
                for (std::size_t i = 0; i < codes.size(); ++i) {
                  const bool nan = format != DType::i8 && std::isnan(values[i]);
                  ASSERT_TRUE(codes[i] == want.codes[i] || (nan && (codes[i] & 0x7f) == (want.codes[i] & 0x7f)))
                      << "row " << i / k << " column " << i % k << ": " << int{codes[i]} << ", expected "
                      << int{want.codes[i]};
                }
              }
            }
      }
  });
}

TEST(Quantize, ScaleRules) {
  EXPECT_EQ(scale_for(0.0f, DType::e4m3, false).scale, 1.0f);
  EXPECT_EQ(scale_for(448.0f, DType::e4m3, false).scale, 1.0f);
  EXPECT_EQ(scale_for(254.0f, DType::i8, false).scale, 2.0f);
  EXPECT_EQ(scale_for(57344.0f, DType::e5m2, false).multiplier, 1.0f);
  EXPECT_EQ(scale_for(449.0f, DType::e4m3, true).scale, 2.0f);  // rounded up
  EXPECT_EQ(scale_for(448.0f, DType::e4m3, true).scale, 1.0f);
  EXPECT_EQ(scale_for(1e-38f, DType::e4m3, false).scale, 0x1p-126f);
  EXPECT_TRUE(std::isfinite(scale_for(1e-45f, DType::e4m3, false).multiplier));
}

TEST(Quantize, DequantizeGivesCodesTimesScale) {
  const std::vector<std::uint8_t> codes{0x38, 0xb8, 0x01, 0x7e, 0x00, 0x40};
  const std::vector<float> scale{2.0f, 0.5f};
  std::vector<float> out(6);
  const MatrixView view{out.data(), 2, 3, 3, DType::f32};
  ASSERT_TRUE(dequantize({codes.data(), DType::e4m3, Scaling::row, scale.data(), view}).ok());
  EXPECT_EQ(out, (std::vector<float>{2.0f, -2.0f, 0x1p-8f, 224.0f, 0.0f, 1.0f}));
}

}  // namespace
}  // namespace octavo::testing
