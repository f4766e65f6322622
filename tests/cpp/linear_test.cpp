// Every linear kernel of the registry against FP64 on dequantized operands, at every instruction set level.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "levels.hpp"
#include "linear_case.hpp"
#include "octavo/threading.hpp"

namespace octavo::testing {
namespace {

constexpr double kFp32 = 1e-5, kBf16 = 1.0 / 256;

void with_every_kernel(const std::function<void(const KernelInfo&)>& body) {
  at_every_level([&] {
    for (const KernelInfo* kernel : Registry::instance().all()) {
      if (kernel->op != Op::linear || kernel->run.linear == nullptr || kernel->device != Device::cpu) continue;
      if (!kernel->is_supported()) continue;
      SCOPED_TRACE(kernel->name);
      body(*kernel);
    }
  });
}

void expect_right(const KernelInfo& kernel, const LinearSpec& spec) {
  LinearCase layer(spec, kernel.numerics);
  const Status status = layer.run(kernel);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_LE(layer.error(), spec.y == DType::f32 ? kFp32 : kBf16) << spec.describe();
  EXPECT_TRUE(layer.padding_untouched()) << spec.describe();
}

TEST(Linear, RowsOfEveryCount) {
  with_every_kernel([](const KernelInfo& kernel) {
    for (const std::int64_t m :
         {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 24, 31, 48, 49, 64, 96, 97, 131, 195})
      expect_right(kernel, {.m = m, .n = 67, .k = 37});
  });
}

TEST(Linear, ColumnsOfEveryCount) {
  with_every_kernel([](const KernelInfo& kernel) {
    for (const std::int64_t n : {0, 1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 96, 127, 128, 129, 331})
      for (const std::int64_t m : {1, 8, 13}) expect_right(kernel, {.m = m, .n = n, .k = 29});
  });
}

TEST(Linear, DepthsOfEveryCount) {
  with_every_kernel([](const KernelInfo& kernel) {
    for (const std::int64_t k : {0,  1,  2,  3,  4,   5,   7,    8,    15,   16,   17,   31,   32,
                                 33, 63, 64, 65, 127, 255, 1023, 1024, 1025, 1027, 2048, 2051, 3073})
      for (const DType x : {DType::f32, DType::bf16})
        for (const std::int64_t m : {1, 7}) expect_right(kernel, {.m = m, .n = 19, .k = k, .x = x});
  });
}

TEST(Linear, CrossesEveryBlockingLimitOnSeveralThreads) {
  const int before = threads();
  set_threads(3);
  with_every_kernel([](const KernelInfo& kernel) {
    for (const DType type : {DType::f32, DType::bf16}) {
      expect_right(kernel, {.m = 307, .n = 193, .k = 1090, .x = type, .y = type, .norm = NormKind::layer});
      expect_right(kernel, {.m = 3, .n = 1290, .k = 1030, .x = type, .y = type, .norm = NormKind::layer});
      expect_right(kernel, {.m = 14, .n = 200, .k = 2060, .x = type, .y = type, .norm = NormKind::layer});
    }
  });
  set_threads(before);
}

TEST(Linear, EveryEpilogue) {
  with_every_kernel([](const KernelInfo& kernel) {
    for (const NormKind norm : {NormKind::none, NormKind::layer, NormKind::rms, NormKind::block, NormKind::swish_rms})
      for (const Activation activation : {Activation::none, Activation::relu, Activation::silu, Activation::gelu,
                                          Activation::hardswish, Activation::sigmoid})
        for (const ResidualUse residual : {ResidualUse::none, ResidualUse::before_norm, ResidualUse::after}) {
          if (norm == NormKind::swish_rms && activation != Activation::none) continue;
          for (const DType type : {DType::f32, DType::bf16}) {
            const DType other = type == DType::f32 ? DType::bf16 : DType::f32;
            expect_right(kernel, {.m = 5,
                                  .n = 83,
                                  .k = 24,
                                  .x = other,
                                  .y = type,
                                  .residual_dtype = other,
                                  .norm = norm,
                                  .norm_block = 32,
                                  .activation = activation,
                                  .residual = residual});
          }
        }
  });
}

TEST(Linear, EpilogueWithoutVectorsAndABlockOfItsOwn) {
  with_every_kernel([](const KernelInfo& kernel) {
    for (const NormKind norm : {NormKind::none, NormKind::layer, NormKind::rms, NormKind::swish_rms})
      expect_right(kernel, {.m = 9, .n = 70, .k = 31, .bias = false, .norm = norm, .norm_vectors = false});
    for (const std::int64_t n : {1, 200, 256, 257, 300, 512, 600})  // a last short block has its own mean
      expect_right(kernel, {.m = 3, .n = n, .k = 31, .norm = NormKind::block});
    for (const std::int64_t block : {1, 7, 16, 100})
      expect_right(kernel, {.m = 3, .n = 45, .k = 31, .norm = NormKind::block, .norm_block = block});
  });
}

TEST(Linear, NoDepthStillAppliesTheEpilogue) {
  with_every_kernel([](const KernelInfo& kernel) {
    expect_right(kernel, {.m = 3,
                          .n = 70,
                          .k = 0,
                          .norm = NormKind::layer,
                          .activation = Activation::gelu,
                          .residual = ResidualUse::after});
  });
}

TEST(Linear, VarianceKeepsItsDigitsBesideALargeMean) {
  with_every_kernel([](const KernelInfo& kernel) {
    expect_right(kernel, {.m = 4, .n = 128, .k = 64, .norm = NormKind::layer, .offset = 64.0f});
  });
}

TEST(Linear, RowStridesOfEveryOperand) {
  with_every_kernel([](const KernelInfo& kernel) {
    for (const DType type : {DType::f32, DType::bf16})
      for (const std::int64_t k : {36, 37})
        expect_right(kernel, {.m = 11,
                              .n = 70,
                              .k = k,
                              .x = type,
                              .y = type,
                              .residual_dtype = type,
                              .residual = ResidualUse::after,
                              .padding = 5});
  });
}

std::vector<float> outputs(LinearCase& layer) {
  std::vector<float> values;
  for (std::int64_t r = 0; r < layer.spec.m; ++r)
    for (std::int64_t c = 0; c < layer.spec.n; ++c) values.push_back(layer.y.get(r, c));
  return values;
}

TEST(Linear, SameBitsTwiceAndOnAnyNumberOfThreads) {
  const int before = threads();
  with_every_kernel([](const KernelInfo& kernel) {
    for (const auto& [m, n, k] : {std::tuple{131, 200, 300}, {3, 700, 300}, {10, 330, 1300}, {65, 64, 64}}) {
      LinearCase layer({.m = m, .n = n, .k = k, .norm = NormKind::layer, .activation = Activation::silu},
                       kernel.numerics);
      set_threads(1);
      ASSERT_TRUE(layer.run(kernel).ok());
      const std::vector<float> first = outputs(layer);
      for (const int count : {1, 2, 3, 5}) {
        set_threads(count);
        ASSERT_TRUE(layer.run(kernel).ok());
        EXPECT_EQ(first, outputs(layer)) << count << " threads, m=" << m;
      }
    }
  });
  set_threads(before);
}

TEST(Linear, RowsDoNotDependOnTheirBatch) {
  with_every_kernel([](const KernelInfo& kernel) {
    LinearCase batch({.m = 50, .n = 90, .k = 70, .norm = NormKind::rms}, kernel.numerics);
    ASSERT_TRUE(batch.run(kernel).ok());
    for (const std::int64_t row : {0, 7, 49}) {
      LinearCase one({.m = 1, .n = 90, .k = 70, .norm = NormKind::rms}, kernel.numerics);
      LinearArgs args;
      args.x = {batch.x.f32.data() + row * 70, 1, 70, 70, DType::f32};
      args.weight = &*batch.weight;
      args.y = one.y.view();
      args.epilogue.bias = batch.bias.data();
      args.epilogue.norm = NormKind::rms;
      args.epilogue.norm_weight = batch.norm_weight.data();
      ASSERT_TRUE(kernel.run.linear(args).ok());
      for (std::int64_t c = 0; c < 90; ++c) ASSERT_EQ(one.y.get(0, c), batch.y.get(row, c)) << "row " << row;
    }
  });
}

TEST(Linear, NanStaysInItsRowAndInfinityDoesNotPoisonTheScale) {
  with_every_kernel([](const KernelInfo& kernel) {
    const bool scaled = kernel.numerics != Numerics::bf16 && kernel.numerics != Numerics::e4m3_weight_only;
    for (const DType x : {DType::f32, DType::bf16})
      for (const std::int64_t k : {20, 77}) {
        LinearCase layer({.m = 9, .n = 33, .k = k, .x = x}, kernel.numerics);
        layer.x.set(2, k - 1, std::numeric_limits<float>::quiet_NaN());
        if (scaled) layer.x.set(4, 3, std::numeric_limits<float>::infinity());
        if (scaled) layer.x.set(5, 0, -std::numeric_limits<float>::infinity());
        for (std::int64_t c = 0; c < k; ++c) layer.x.set(6, c, 0.0f);
        ASSERT_TRUE(layer.run(kernel).ok());
        EXPECT_LE(layer.error(), kFp32);
        for (std::int64_t c = 0; c < 33; ++c) {
          EXPECT_TRUE(std::isnan(layer.y.get(2, c)));
          EXPECT_TRUE(std::isfinite(layer.y.get(3, c)));
          EXPECT_EQ(layer.y.get(6, c), layer.bias[static_cast<std::size_t>(c)]);
          EXPECT_TRUE(std::isfinite(layer.y.get(4, c)));
        }
      }
  });
}

TEST(Linear, EveryE4m3CodeOfAWeightIsExact) {
  with_every_kernel([](const KernelInfo& kernel) {
    if (weight_format(kernel.numerics) != DType::e4m3) return;
    for (const std::int64_t m : {1, 6, 8, 20}) {  // each way of decoding
      LinearCase layer({.m = m, .n = 256, .k = 2, .bias = false}, kernel.numerics);
      for (std::size_t code = 0; code < 256; ++code) {
        layer.codes[code * 2] = static_cast<std::uint8_t>(code);
        layer.codes[code * 2 + 1] = 0;
      }
      std::fill(layer.scale.begin(), layer.scale.end(), 1.0f);
      for (std::int64_t r = 0; r < m; ++r) {
        layer.x.set(r, 0, 448.0f);
        layer.x.set(r, 1, 0.0f);
      }
      ASSERT_TRUE(layer.run(kernel).ok());
      for (std::int64_t code = 0; code < 256; ++code) {
        const float want = 448.0f * decode_e4m3(static_cast<std::uint8_t>(code));
        if (std::isnan(want)) {
          EXPECT_TRUE(std::isnan(layer.y.get(m - 1, code)));
        } else {
          EXPECT_EQ(layer.y.get(m - 1, code), want) << "code " << code;
        }
      }
    }
  });
}

TEST(Linear, Int8SumsAreExactAtTheirLargest) {
  with_every_kernel([](const KernelInfo& kernel) {
    if (kernel.numerics != Numerics::int8_dynamic) return;
    constexpr std::int64_t k = 5000;
    LinearCase layer({.m = 2, .n = 3, .k = k, .bias = false}, kernel.numerics);
    for (std::int64_t j = 0; j < k; ++j) {
      layer.x.set(0, j, 127.0f);
      layer.x.set(1, j, j % 2 == 0 ? 127.0f : -127.0f);
      for (std::size_t c = 0; c < 3; ++c) layer.codes[c * k + static_cast<std::size_t>(j)] = c == 1 ? 129 : 127;
    }
    layer.codes[2 * k] = 126;  // one off from the others: the sum must show it
    layer.scale.assign(3, 1.0f);
    ASSERT_TRUE(layer.run(kernel).ok());
    constexpr float largest = 127.0f * 127.0f * k;
    EXPECT_EQ(layer.y.get(0, 0), largest);
    EXPECT_EQ(layer.y.get(0, 1), -largest);
    EXPECT_EQ(layer.y.get(0, 2), static_cast<float>(127 * 127 * k - 127));
    EXPECT_EQ(layer.y.get(1, 0), 0.0f);
    EXPECT_EQ(layer.y.get(1, 2), -127.0f);
  });
}

TEST(Linear, GenericInt8SumsStayExactBeyondInt32) {
  const KernelInfo* kernel = Registry::instance().find("cpu.generic.linear.int8_dynamic");
  at_every_level([&] {
    constexpr std::int64_t k = 150000;
    LinearCase layer({.m = 1, .n = 1, .k = k, .bias = false}, Numerics::int8_dynamic);
    for (std::int64_t j = 0; j < k; ++j) {
      layer.x.set(0, j, 127.0f);
      layer.codes[static_cast<std::size_t>(j)] = 127;
    }
    layer.scale.assign(1, 1.0f);
    ASSERT_TRUE(layer.run(*kernel).ok());
    EXPECT_EQ(layer.y.get(0, 0), 127.0f * 127.0f * static_cast<float>(k));
  });
}

TEST(Linear, LayoutIsMadeOncePerKernel) {
  for (const KernelInfo* kernel : Registry::instance().all()) {
    if (kernel->op != Op::linear || kernel->run.linear == nullptr || kernel->device != Device::cpu) continue;
    if (!kernel->is_supported()) continue;
    LinearCase layer({.m = 2, .n = 65, .k = 9}, kernel->numerics);
    EXPECT_EQ(layer.weight->layout_bytes(), 0u);
    ASSERT_TRUE(layer.run(*kernel).ok());
    const std::size_t bytes = layer.weight->layout_bytes();
    EXPECT_GT(bytes, 0u);
    ASSERT_TRUE(layer.run(*kernel).ok());
    EXPECT_EQ(layer.weight->layout_bytes(), bytes);
  }
}

TEST(Linear, RefusesWhatNoKernelCouldTake) {
  LinearCase layer({.m = 2, .n = 3, .k = 4}, Numerics::int8_dynamic);
  LinearArgs good;
  good.x = layer.x.view();
  good.weight = &*layer.weight;
  good.y = layer.y.view();
  EXPECT_TRUE(validate(good, Numerics::int8_dynamic).ok());
  EXPECT_NE(validate(good, Numerics::e4m3_row).message().find("not packed for class e4m3_row"), std::string::npos);
  for (const auto& [packed, asked] : {std::pair{Numerics::e4m3_row, Numerics::e4m3_block},
                                      {Numerics::e4m3_block, Numerics::e4m3_row},
                                      {Numerics::e4m3_block, Numerics::e4m3_weight_only}}) {
    LinearCase other({.m = 2, .n = 3, .k = 4}, packed);
    const std::string wanted = std::string("scales are not those of class ") + to_string(asked);
    EXPECT_NE(validate(other.args(), asked).message().find(wanted), std::string::npos);
  }
  const auto message = [&](auto change) {
    LinearArgs args = good;
    change(args);
    const Status status = validate(args, Numerics::int8_dynamic);
    EXPECT_EQ(status.code(), Code::invalid_argument);
    return status.message();
  };
  const auto names = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  EXPECT_TRUE(names(message([](LinearArgs& a) { a.weight = nullptr; }), "weight is missing"));
  EXPECT_TRUE(names(message([](LinearArgs& a) { a.x.cols = 5; }), "x is [2, 5] but weight is [3, 4]"));
  EXPECT_TRUE(names(message([](LinearArgs& a) { a.y.rows = 1; }), "out is [1, 3], expected [2, 3]"));
  EXPECT_TRUE(names(message([](LinearArgs& a) { a.x.dtype = DType::f16; }), "x must be float32 or bfloat16"));
  EXPECT_TRUE(names(message([](LinearArgs& a) { a.y.dtype = DType::f16; }), "out must be float32"));
  EXPECT_TRUE(names(message([](LinearArgs& a) {
                      a.epilogue.norm = NormKind::block;
                      a.epilogue.norm_weight = a.weight->scale();
                    }),
                    "block norm has no parameters"));
  EXPECT_TRUE(names(message([](LinearArgs& a) {
                      a.epilogue.norm = NormKind::swish_rms;
                      a.epilogue.activation = Activation::relu;
                    }),
                    "SwishRMSNorm is its own activation"));
}

}  // namespace
}  // namespace octavo::testing
