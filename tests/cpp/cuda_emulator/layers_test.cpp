// Linear layers for Hopper from end to end on the CPU: padding, copies, routes, tiles, slices and every
// address are the real ones, the SIMT kernels run on the emulator, the tensor-core GEMM is a stand-in.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <set>

#include "gemm/layers.hpp"
#include "gemm_reference.hpp"
#include "kernels.hpp"
#include "linear_case.hpp"

namespace octavo::testing {
namespace {

using cuda::Store;

struct Class {
  Numerics numerics;
  LinearLauncher run;
};
constexpr Class kClasses[] = {{Numerics::bf16, cuda::linear_bf16_sm90},
                              {Numerics::e4m3_row, cuda::linear_e4m3_row_sm90},
                              {Numerics::e4m3_row_fast, cuda::linear_e4m3_row_fast_sm90},
                              {Numerics::e4m3_block, cuda::linear_e4m3_block_sm90}};

bool has_blocks(const Class& c) { return c.numerics == Numerics::e4m3_block; }

// Of the largest element. Norms that take no mean off may see a product in BF16, unless the GEMM has them.
double bound_of(DType y, NormKind norm) {
  const bool steps = norm != NormKind::none && norm != NormKind::layer && store_of_last() != Store::norm;
  return y == DType::f32 ? 1e-5 : steps ? 2.0 / 256 : 1.0 / 256;
}

// Runs one layer and holds it to FP64; which store its GEMM used.
Store expect_layer(const LinearSpec& spec, const Class& c) {
  LinearCase layer(spec, c.numerics);
  const Status status = c.run(layer.args());
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_LE(layer.error(), bound_of(spec.y, spec.norm)) << to_string(c.numerics) << " " << spec.describe();
  EXPECT_TRUE(layer.padding_untouched()) << spec.describe();
  return store_of_last();
}

TEST(CudaLayers, ShapesTypesAndStrides) {
  for (const Class& c : kClasses)
    for (const auto& [m, n, k] :
         {std::array{1, 1, 1}, {3, 8, 16}, {5, 16, 17}, {19, 130, 57}, {70, 24, 33}, {2, 67, 1}})
      for (const DType x : {DType::f32, DType::bf16})
        for (const DType y : {DType::f32, DType::bf16})
          for (const int padding : {0, 8, 3}) {
            const Store store = expect_layer({.m = m, .n = n, .k = k, .x = x, .y = y, .padding = padding}, c);
            const bool tma = y == DType::bf16 && n % 8 == 0 && (m == 1 || padding % 8 == 0) && !has_blocks(c);
            EXPECT_EQ(store, tma ? Store::tma : Store::direct);
          }
}

TEST(CudaLayers, EveryEpilogueOnEveryRoute) {
  std::set<Store> seen;
  for (const Class& c : kClasses)
    for (const int n : {8, 72, 131, 264})
      for (const NormKind norm : {NormKind::none, NormKind::layer, NormKind::rms, NormKind::block, NormKind::swish_rms})
        for (const ResidualUse residual : {ResidualUse::none, ResidualUse::before_norm, ResidualUse::after})
          for (const DType y : {DType::f32, DType::bf16}) {
            LinearSpec spec{.m = 5, .n = n, .k = 40, .x = DType::bf16, .y = y, .norm = norm};
            spec.residual_dtype = n % 16 == 8 ? y : DType::f32;
            spec.activation = static_cast<Activation>(norm == NormKind::swish_rms ? 0 : n % 6);
            spec.residual = residual;
            seen.insert(expect_layer(spec, c));
          }
  EXPECT_EQ(seen, (std::set<Store>{Store::tma, Store::direct, Store::norm}));
}

TEST(CudaLayers, BlocksOfColumnsHaveStatisticsOfTheirOwn) {
  std::set<std::pair<int, bool>> seen;  // columns; whether the GEMM had the norm
  for (const Class& c : kClasses)
    for (const int n : {128, 136, 520})
      for (const int block : {16, 48, 64, 128, 256}) {
        LinearSpec spec{.m = 4, .n = n, .k = 24, .x = DType::f32, .y = DType::bf16, .norm = NormKind::block};
        spec.norm_block = block;
        spec.residual_dtype = DType::bf16;
        spec.residual = n == 520 ? ResidualUse::after : ResidualUse::none;
        const int widest = c.numerics == Numerics::e4m3_row ? 128 : 256;
        const bool whole = n <= block && n <= widest;
        const bool fits = !has_blocks(c) && (whole || (block % 64 == 0 && block <= widest));
        const bool fused = expect_layer(spec, c) == Store::norm;
        EXPECT_TRUE(fits || !fused) << spec.describe() << " block " << block;
        seen.insert({n, fused});
      }
  for (const int n : {128, 136}) EXPECT_TRUE(seen.contains({n, true}) && seen.contains({n, false})) << n;
}

TEST(CudaLayers, ARecordedLayerKeepsWhatTheNormSaw) {
  for (const Class& c : kClasses)
    for (const NormKind norm : {NormKind::none, NormKind::layer, NormKind::rms})
      for (const DType y : {DType::f32, DType::bf16})
        for (const int padding : {0, 3})
          for (const ResidualUse residual : {ResidualUse::none, ResidualUse::before_norm, ResidualUse::after}) {
            LinearSpec spec{.m = 7, .n = 40, .k = 30, .x = y, .y = y, .residual_dtype = y, .norm = norm};
            spec.residual = residual;
            LinearCase layer(spec, c.numerics);
            Matrix saved(y, 7, 40, padding);
            LinearArgs args = layer.args();
            args.epilogue.saved = saved.view();
            ASSERT_TRUE(c.run(args).ok());
            EXPECT_LE(layer.error(), bound_of(y, norm)) << spec.describe();
            LinearSpec bare = spec;  // the layer up to its norm
            bare.norm = NormKind::none;
            if (residual == ResidualUse::after) bare.residual = ResidualUse::none;
            LinearCase before(bare, c.numerics);
            before.x = layer.x, before.codes = layer.codes, before.scale = layer.scale, before.bias = layer.bias;
            before.residual = layer.residual;
            before.y = saved;
            EXPECT_LE(before.error(), y == DType::f32 ? 1e-5 : 1.0 / 256) << spec.describe();
          }
}

// Behind a norm the route decides the FP32 output's last bits, and where steps lie in BF16 those beyond 2^-7 of the
// largest: codes are those of an output that is off by as much.
TEST(CudaLayers, CodesBehindANormAreThoseOfItsRoute) {
  std::set<std::pair<Store, bool>> seen;  // of the GEMM; whether the product was in BF16
  for (const Class& c : kClasses)
    for (const NormKind norm : {NormKind::layer, NormKind::rms, NormKind::block, NormKind::swish_rms})
      for (const ResidualUse residual : {ResidualUse::none, ResidualUse::before_norm, ResidualUse::after})
        for (const DType format : {DType::e4m3, DType::i8})
          for (const int n : {32, 67, 520}) {
            LinearSpec spec{.m = 9, .n = n, .k = 48, .x = DType::f32, .y = DType::f32, .norm = norm};
            spec.residual = residual;
            spec.residual_dtype = DType::bf16;
            LinearCase layer(spec, c.numerics);
            std::vector<std::uint8_t> codes(static_cast<std::size_t>(9 * n));
            std::vector<float> scale(9);
            LinearArgs args = layer.args();
            args.y = {codes.data(), 9, n, n, format};
            args.y_scale = scale.data();
            const Status status = c.run(args);
            ASSERT_TRUE(status.ok()) << status.message();
            const Store store = store_of_last();
            seen.insert({store, norm != NormKind::layer});
            const std::vector<double> wanted = layer.reference();
            double largest = 0;
            for (const double y : wanted) largest = std::max(largest, std::fabs(y));
            const double own = store == Store::norm || norm == NormKind::layer ? 1e-5 : 2.0 / 256;
            for (std::size_t i = 0; i < wanted.size(); ++i) {
              const double step = scale[i / static_cast<std::size_t>(n)];
              const bool whole = format == DType::i8;
              const double found = step * (whole ? static_cast<std::int8_t>(codes[i]) : decode_e4m3(codes[i]));
              const double half = whole ? step / 2 : std::max(std::fabs(wanted[i]) / 16, step / 1024);
              // The code is of a value within `own`, whose own half step is that much larger at most.
              ASSERT_NEAR(found, wanted[i], half + own * largest * 17 / 16) << spec.describe();
            }
          }
  EXPECT_TRUE(seen.contains({Store::norm, false}) && seen.contains({Store::tma, true}));
}

// Of a residual [3, n] row rows[i] belongs to row i, on every type of output; one outside makes NaN of its row alone.
TEST(CudaLayers, RowsOfTheResidualAreSharedByName) {
  std::vector<std::int64_t> rows{2, 0, 0, 1, 2, 2, 1};
  for (const Class& c : kClasses)
    for (const NormKind norm : {NormKind::none, NormKind::layer, NormKind::block})
      for (const ResidualUse residual : {ResidualUse::before_norm, ResidualUse::after})
        for (const DType y : {DType::f32, DType::bf16}) {
          LinearSpec spec{.m = 7, .n = 40, .k = 30, .x = y, .y = y, .residual_dtype = y, .norm = norm};
          spec.norm_block = 16;
          spec.activation = Activation::relu;
          spec.residual = residual;
          LinearCase layer(spec, c.numerics);
          Matrix shared(y, 3, 40, 5);
          for (std::int64_t i = 0; i < 3; ++i)
            for (std::int64_t j = 0; j < 40; ++j) shared.set(i, j, layer.residual.get(i + 4, j));
          for (std::int64_t i = 0; i < 7; ++i)
            for (std::int64_t j = 0; j < 40; ++j)
              layer.residual.set(i, j, shared.get(rows[static_cast<std::size_t>(i)], j));
          LinearArgs args = layer.args();
          args.epilogue.residual = shared.view();
          args.epilogue.residual_rows = rows.data();
          ASSERT_TRUE(c.run(args).ok());
          EXPECT_LE(layer.error(), bound_of(y, norm)) << spec.describe();

          const Matrix right = layer.y;
          for (const std::int64_t outside : {std::int64_t{-1}, std::int64_t{3}, INT64_MIN}) {
            std::vector<std::int64_t> wrong = rows;
            wrong[4] = outside;
            args.epilogue.residual_rows = wrong.data();
            ASSERT_TRUE(c.run(args).ok());
            for (std::int64_t i = 0; i < 7; ++i)
              for (std::int64_t j = 0; j < 40; ++j) {
                if (i == 4)
                  ASSERT_TRUE(std::isnan(layer.y.get(i, j)));
                else
                  ASSERT_EQ(layer.y.get(i, j), right.get(i, j));
              }
          }
        }
}

TEST(CudaLayers, SharedRowsThatCannotBeAreNamed) {
  LinearSpec spec{.m = 2, .n = 8, .k = 16};
  spec.residual = ResidualUse::after;
  LinearCase layer(spec, Numerics::bf16);
  const std::vector<std::int64_t> rows{0, 0};
  LinearArgs args = layer.args();
  args.epilogue.residual_rows = rows.data();
  const KernelInfo* cpu = Registry::instance().find("cpu.generic.linear.bf16");
  EXPECT_NE(cpu->run.linear(args).message().find("gather the rows"), std::string::npos);
  args.epilogue.residual.rows = 0;
  EXPECT_NE(cuda::linear_bf16_sm90(args).message().find("residual has no rows"), std::string::npos);
  args.epilogue.residual = {};
  EXPECT_NE(cuda::linear_bf16_sm90(args).message().find("needs a residual"), std::string::npos);
}

TEST(CudaLayers, CodesGoInAndOut) {
  for (const Class& c : kClasses) {
    if (c.numerics == Numerics::bf16) continue;
    for (const int k : {16, 48, 37, 300})
      for (const NormKind norm : {NormKind::none, NormKind::layer}) {  // in steps: 24 bytes are no rows of 16
        LinearSpec spec{.m = 9, .n = 24, .k = k, .x = DType::f32, .y = DType::f32, .norm = norm};
        LinearCase layer(spec, c.numerics);
        ASSERT_TRUE(c.run(layer.args()).ok());
        const std::vector<float> floats = layer.y.f32;

        const auto quantize = [](MatrixView x, DType format, std::uint8_t* to, float* scales, bool blocks = false) {
          QuantizeArgs args{x, format, blocks ? Scaling::block_1x128 : Scaling::row};
          args.codes = to;
          args.scale = scales;
          const char* kernel = blocks ? "cpu.generic.quantize_block" : "cpu.generic.quantize";
          EXPECT_TRUE(Registry::instance().find(kernel)->run.quantize(args).ok());
        };
        std::vector<std::uint8_t> codes(static_cast<std::size_t>(9 * k));
        std::vector<float> scale(static_cast<std::size_t>(9 * scale_blocks(k)));
        quantize(layer.x.view(), DType::e4m3, codes.data(), scale.data(), has_blocks(c));
        LinearArgs args = layer.args();
        args.x = {codes.data(), 9, k, k, DType::e4m3};
        args.x_scale = scale.data();
        ASSERT_TRUE(c.run(args).ok());
        EXPECT_EQ(layer.y.f32, floats);  // the bits of the floats they came from

        for (const DType format : {DType::e4m3, DType::i8}) {
          std::vector<std::uint8_t> out(9 * 24), wanted(9 * 24);
          std::vector<float> out_scale(9), wanted_scale(9);
          args.y = {out.data(), 9, 24, 24, format};
          args.y_scale = out_scale.data();
          ASSERT_TRUE(c.run(args).ok());
          quantize(layer.y.view(), format, wanted.data(), wanted_scale.data());
          EXPECT_EQ(out, wanted);
          EXPECT_EQ(out_scale, wanted_scale);
        }
      }
  }
}

// More than one block along N and K, short last ones, rows of scales that are padded.
TEST(CudaLayers, EveryBlockHasItsScale) {
  for (const auto& [m, n, k] : {std::array{1, 128, 128}, {5, 129, 257}, {3, 300, 384}, {130, 260, 130}})
    for (const DType y : {DType::f32, DType::bf16})
      for (const NormKind norm : {NormKind::none, NormKind::layer})
        expect_layer({.m = m, .n = n, .k = k, .x = DType::bf16, .y = y, .norm = norm}, kClasses[3]);
}

TEST(CudaLayers, NothingToDoIsDone) {
  for (const Class& c : kClasses)
    for (const auto& [m, n] : {std::array{0, 8}, {3, 0}, {0, 0}}) {
      LinearCase layer({.m = m, .n = n, .k = 5}, c.numerics);
      EXPECT_TRUE(c.run(layer.args()).ok());
    }
  for (const Class& c : kClasses) expect_layer({.m = 3, .n = 8, .k = 0}, c);
}

// Nothing is copied on the way, so that addresses stay.
TEST(CudaLayers, ParametersOfAKernelAreMadeOnceForCallsThatRepeat) {
  LinearCase layer({.m = 5, .n = 16, .k = 32, .x = DType::bf16, .y = DType::bf16}, Numerics::bf16);
  const int before = gemm_preparations();
  const auto expect_made = [&](const LinearArgs& args, int times) {
    for (int twice = 0; twice < 2; ++twice) {
      ASSERT_TRUE(cuda::linear_bf16_sm90(args).ok());
      EXPECT_LE(layer.error(), 1.0 / 256);
    }
    EXPECT_EQ(gemm_preparations() - before, times);
  };
  expect_made(layer.args(), 1);
  for (int r = 0; r < 5; ++r)
    for (int k = 0; k < 32; ++k) layer.x.set(r, k, static_cast<float>(r - k) / 32);  // other numbers, same place
  for (float& b : layer.bias) b = 3.0f - b;
  expect_made(layer.args(), 1);
  LinearArgs args = layer.args();
  const std::vector<float> bias = layer.bias;
  args.epilogue.bias = bias.data();  // the same numbers, another place
  expect_made(args, 2);
  expect_made(layer.args(), 2);
  args = layer.args();
  args.epilogue.activation = Activation::relu;
  ASSERT_TRUE(cuda::linear_bf16_sm90(args).ok());
  EXPECT_EQ(gemm_preparations() - before, 3);
  expect_made(layer.args(), 3);
  for (std::int64_t m = 5; m > 0; --m) {  // fewer rows of the same matrices
    args = layer.args();
    args.x.rows = args.y.rows = m;
    ASSERT_TRUE(cuda::linear_bf16_sm90(args).ok());
  }
  EXPECT_EQ(gemm_preparations() - before, 3 + 4);
}

// A broadcast row of x: stride 0.
TEST(CudaLayers, RowsThatOverlapAreCopied) {
  for (const Class& c : kClasses)
    for (const DType x : {DType::f32, DType::bf16}) {
      LinearCase layer({.m = 6, .n = 16, .k = 32, .x = x}, c.numerics);
      for (int r = 1; r < 6; ++r)
        for (int j = 0; j < 32; ++j) layer.x.set(r, j, layer.x.get(0, j));
      LinearArgs args = layer.args();
      args.x.row_stride = 0;
      ASSERT_TRUE(c.run(args).ok());
      EXPECT_LE(layer.error(), 1e-5);
    }
}

// What blocks still read is not written by others: the bits of an output of its own.
TEST(CudaLayers, TheOutputMayLieInX) {
  for (const Class& c : kClasses)
    for (const std::int64_t beside : {0, 32, 64}) {  // columns from x's first to y's; x and y have 64 of 160
      LinearCase layer({.m = 150, .n = 64, .k = 64, .x = DType::bf16, .y = DType::bf16}, c.numerics);
      LinearArgs args = layer.args();
      ASSERT_TRUE(c.run(args).ok());
      Matrix both(DType::bf16, 150, 64, 96);
      for (int r = 0; r < 150; ++r)
        for (int j = 0; j < 64; ++j) both.set(r, j, layer.x.get(r, j));
      args.x = both.view();
      args.y = both.view();
      args.y.data = both.bf16.data() + beside;
      ASSERT_TRUE(c.run(args).ok());
      for (int r = 0; r < 150; ++r)
        for (int j = 0; j < 64; ++j)
          ASSERT_EQ(decode_bf16(both.bf16[static_cast<std::size_t>(r * 160 + beside + j)]), layer.y.get(r, j));
      EXPECT_EQ(may_overlap(args.x, 0, args.y, 0), beside < 64);
    }
}

}  // namespace
}  // namespace octavo::testing
