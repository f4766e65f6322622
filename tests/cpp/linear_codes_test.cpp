// Eight-bit rows into and out of every linear kernel: the bits of the scalar codecs before and after.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>

#include "levels.hpp"
#include "linear_case.hpp"

namespace octavo::testing {
namespace {

void with_every_kernel(const std::function<void(const KernelInfo&)>& body) {
  at_every_level([&] {
    for (const KernelInfo* kernel : Registry::instance().all()) {
      if (kernel->op != Op::linear || !kernel->takes_codes || !kernel->is_supported()) continue;
      SCOPED_TRACE(kernel->name);
      body(*kernel);
    }
  });
}

struct Codes {
  std::vector<std::uint8_t> data;  // [rows, cols], nothing beyond
  std::vector<float> scale;
};

// A scale per row, or per `width` columns of one.
Codes quantized(const Matrix& x, DType format, std::int64_t width = 0) {
  Codes out;
  if (width == 0) width = std::max<std::int64_t>(x.cols, 1);
  for (std::int64_t r = 0; r < x.rows; ++r)
    for (std::int64_t left = 0; left == 0 || left < x.cols; left += width) {
      const std::int64_t right = std::min(x.cols, left + width);
      float largest = 0.0f;
      bool nan = false;
      for (std::int64_t c = left; c < right; ++c) {
        const float v = x.get(r, c);
        if (std::isfinite(v)) largest = std::fmax(largest, std::fabs(v));
        nan = nan || std::isnan(v);
      }
      const ScalePair pair = scale_for(largest, format, false);
      out.scale.push_back(format == DType::i8 && nan ? std::numeric_limits<float>::quiet_NaN() : pair.scale);
      for (std::int64_t c = left; c < right; ++c) {
        const float v = x.get(r, c) * pair.multiplier;
        const float clamped = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v == v ? v : 0.0f;
        out.data.push_back(format == DType::e4m3
                               ? encode_e4m3(v)
                               : static_cast<std::uint8_t>(static_cast<std::int8_t>(std::nearbyint(clamped))));
      }
    }
  return out;
}

void expect_same(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!(std::isnan(a[i]) && std::isnan(b[i]))) {
      ASSERT_EQ(a[i], b[i]) << "at " << i;
    }
}

std::vector<float> values(const Matrix& y) {
  std::vector<float> all;
  for (std::int64_t r = 0; r < y.rows; ++r)
    for (std::int64_t c = 0; c < y.cols; ++c) all.push_back(y.get(r, c));
  return all;
}

TEST(LinearCodes, QuantizedRowsGiveTheBitsOfTheirFloats) {
  with_every_kernel([](const KernelInfo& kernel) {
    const bool blocks = kernel.numerics == Numerics::e4m3_block;
    if (kernel.numerics != Numerics::e4m3_row && kernel.numerics != Numerics::int8_dynamic && !blocks) return;
    const DType format = weight_format(kernel.numerics);
    for (const auto& [m, n] : {std::pair{1, 19}, {3, 70}, {8, 64}, {13, 33}})
      for (const std::int64_t k : {0, 1, 2, 3, 5, 31, 32, 33, 63, 64, 65, 127, 129, 1023, 1025, 2051}) {
        LinearCase layer({.m = m, .n = n, .k = k, .norm = NormKind::rms}, kernel.numerics);
        if (m > 2 && k > 2) {
          layer.x.set(0, k - 1, std::numeric_limits<float>::quiet_NaN());
          layer.x.set(1, 1, std::numeric_limits<float>::infinity());
        }
        ASSERT_TRUE(layer.run(kernel).ok());
        const std::vector<float> want = values(layer.y);
        Codes codes = quantized(layer.x, format, blocks ? kScaleBlock : 0);
        LinearArgs args = layer.args();
        args.x = {codes.data.data(), m, k, k, format};
        args.x_scale = codes.scale.data();
        const Status status = kernel.run.linear(args);
        ASSERT_TRUE(status.ok()) << status.message();
        SCOPED_TRACE(layer.spec.describe());
        expect_same(values(layer.y), want);
      }
  });
}

TEST(LinearCodes, OutputsAreTheCodesOfTheFp32Output) {
  with_every_kernel([](const KernelInfo& kernel) {
    for (const DType format : {DType::e4m3, DType::i8})
      for (const std::int64_t n : {1, 7, 16, 33, 64, 100, 321})
        for (const NormKind norm : {NormKind::none, NormKind::layer, NormKind::block, NormKind::swish_rms}) {
          LinearCase layer({.m = 7, .n = n, .k = 40, .norm = norm, .norm_block = 50, .residual = ResidualUse::after},
                           kernel.numerics);
          layer.residual.set(2, n - 1, std::numeric_limits<float>::quiet_NaN());
          layer.residual.set(3, 0, -std::numeric_limits<float>::infinity());
          ASSERT_TRUE(layer.run(kernel).ok());
          const Codes want = quantized(layer.y, format);
          Codes found{std::vector<std::uint8_t>(want.data.size()), std::vector<float>(want.scale.size())};
          LinearArgs args = layer.args();
          args.y = {found.data.data(), 7, n, n, format};
          args.y_scale = found.scale.data();
          const Status status = kernel.run.linear(args);
          ASSERT_TRUE(status.ok()) << status.message();
          SCOPED_TRACE(layer.spec.describe());
          expect_same(found.scale, want.scale);
          for (std::size_t i = 0; i < want.data.size(); ++i)
            if (format == DType::i8 || (want.data[i] & 0x7f) != 0x7f) {
              ASSERT_EQ(found.data[i], want.data[i]) << i;
            }
        }
  });
}

TEST(LinearCodes, RowStridesOfCodes) {
  with_every_kernel([](const KernelInfo& kernel) {
    if (kernel.numerics != Numerics::int8_dynamic) return;
    LinearCase layer({.m = 5, .n = 20, .k = 37}, kernel.numerics);
    ASSERT_TRUE(layer.run(kernel).ok());
    const Codes codes = quantized(layer.x, DType::i8), want = quantized(layer.y, DType::i8);
    std::vector<std::uint8_t> wide(5 * 50, 99), out(5 * 30, 77);
    for (std::size_t r = 0; r < 5; ++r)
      for (std::size_t c = 0; c < 37; ++c) wide[r * 50 + c] = codes.data[r * 37 + c];
    std::vector<float> scale(5);
    LinearArgs args = layer.args();
    args.x = {wide.data(), 5, 37, 50, DType::i8};
    args.x_scale = codes.scale.data();
    args.y = {out.data(), 5, 20, 30, DType::i8};
    args.y_scale = scale.data();
    ASSERT_TRUE(kernel.run.linear(args).ok());
    expect_same(scale, want.scale);
    for (std::size_t r = 0; r < 5; ++r)
      for (std::size_t c = 0; c < 30; ++c) ASSERT_EQ(out[r * 30 + c], c < 20 ? want.data[r * 20 + c] : 77);
  });
}

TEST(LinearCodes, RefusesFormatsOfOtherClassesAndMissingScales) {
  LinearCase layer({.m = 2, .n = 3, .k = 4}, Numerics::e4m3_row);
  const Codes codes = quantized(layer.x, DType::e4m3);
  const auto message = [&](Numerics numerics, auto change) {
    LinearCase of_class({.m = 2, .n = 3, .k = 4}, numerics);
    LinearArgs args = of_class.args();
    change(args);
    return validate(args, numerics).message();
  };
  const auto as = [&](DType format) {
    return [&, format](LinearArgs& a) {
      a.x.dtype = format;
      a.x_scale = codes.scale.data();
    };
  };
  const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  EXPECT_EQ(message(Numerics::e4m3_row, as(DType::e4m3)), "");
  EXPECT_EQ(message(Numerics::int8_dynamic, as(DType::i8)), "");
  EXPECT_TRUE(has(message(Numerics::e4m3_row, as(DType::i8)), "or quantized as class e4m3_row does"));
  EXPECT_TRUE(has(message(Numerics::bf16, as(DType::i8)), "x must be float32 or bfloat16"));
  EXPECT_TRUE(has(message(Numerics::e4m3_weight_only, as(DType::e4m3)), "x must be float32 or bfloat16"));
  EXPECT_TRUE(
      has(message(Numerics::e4m3_row, [](LinearArgs& a) { a.x.dtype = DType::e4m3; }), "codes of x need their scales"));
  EXPECT_TRUE(has(message(Numerics::bf16, [](LinearArgs& a) { a.y.dtype = DType::e4m3; }),
                  "codes of out need a scale per row"));
}

}  // namespace
}  // namespace octavo::testing
