// Which route a linear layer takes on Hopper, without a device.
#include "gemm/layer_plan.hpp"

#include <gtest/gtest.h>

namespace octavo::cuda {
namespace {

LayerRequest layer(std::int64_t m, std::int64_t n, std::int64_t k) {
  LayerRequest request;
  request.m = m;
  request.n = n;
  request.k = k;
  return request;
}

const Tile& tile_of(const LayerPlan& plan) { return kTiles[static_cast<std::size_t>(plan.tile)]; }

TEST(LayerPlan, WithoutANormOneGemmDoesEverything) {
  for (const Product product : {Product::e4m3, Product::e4m3_fast, Product::e4m3_block, Product::bf16})
    for (const DType y : {DType::f32, DType::bf16, DType::e4m3})
      for (const Residual residual : {Residual::none, Residual::bf16, Residual::f32})
        for (const std::int64_t n : {1, 8, 67, 512}) {
          LayerRequest request = layer(300, n, 77);
          request.product = product;
          request.y = y;
          request.residual = residual;
          const LayerPlan plan = plan_layer(request);
          EXPECT_EQ(plan.route, Route::whole);
          EXPECT_EQ(tile_of(plan).product, product);
          const bool tma =
              y == DType::bf16 && n % 8 == 0 && residual != Residual::f32 && product != Product::e4m3_block;
          EXPECT_EQ(tile_of(plan).store, tma ? Store::tma : Store::direct);
        }
}

TEST(LayerPlan, NormsAreFusedWhereTheRowFitsOneTile) {
  const auto route = [](auto change) {
    LayerRequest request = layer(1000, 128, 256);
    request.norm = NormKind::layer;
    change(request);
    const LayerPlan plan = plan_layer(request);
    EXPECT_EQ(plan.route == Route::fused, tile_of(plan).store == Store::norm);
    return plan.route;
  };
  EXPECT_EQ(route([](LayerRequest&) {}), Route::fused);
  EXPECT_EQ(route([](LayerRequest& r) { r.norm = NormKind::swish_rms; }), Route::fused);
  EXPECT_EQ(route([](LayerRequest& r) { r.norm = NormKind::block; }), Route::fused);
  EXPECT_EQ(route([](LayerRequest& r) { r.norm = NormKind::block, r.norm_block = 64; }), Route::fused);
  EXPECT_EQ(route([](LayerRequest& r) { r.norm = NormKind::block, r.norm_block = 48; }), Route::in_steps);
  EXPECT_EQ(route([](LayerRequest& r) { r.norm = NormKind::block, r.norm_block = 128, r.n = 1000; }), Route::fused);
  EXPECT_EQ(route([](LayerRequest& r) { r.norm = NormKind::block, r.n = 1000; }), Route::in_steps);  // blocks of 256
  EXPECT_EQ(route([](LayerRequest& r) { r.norm = NormKind::block, r.n = 1000, r.product = Product::bf16; }),
            Route::fused);
  EXPECT_EQ(route([](LayerRequest& r) { r.n = 128; }), Route::fused);
  EXPECT_EQ(route([](LayerRequest& r) { r.n = 136; }), Route::in_steps);
  EXPECT_EQ(route([](LayerRequest& r) { r.product = Product::e4m3_block; }), Route::in_steps);
  EXPECT_EQ(route([](LayerRequest& r) { r.n = 256, r.product = Product::e4m3_fast; }), Route::fused);
  EXPECT_EQ(route([](LayerRequest& r) { r.n = 256, r.product = Product::bf16; }), Route::fused);
  EXPECT_EQ(route([](LayerRequest& r) { r.n = 264, r.product = Product::bf16; }), Route::in_steps);
  EXPECT_EQ(route([](LayerRequest& r) { r.n = 127; }), Route::in_steps);
  EXPECT_EQ(route([](LayerRequest& r) { r.y = DType::f32; }), Route::in_steps);
  EXPECT_EQ(route([](LayerRequest& r) { r.y = DType::e4m3; }), Route::fused);
  EXPECT_EQ(route([](LayerRequest& r) { r.y = DType::i8; }), Route::in_steps);
  EXPECT_EQ(route([](LayerRequest& r) { r.y = DType::e4m3, r.n = 200; }), Route::in_steps);
  EXPECT_EQ(route([](LayerRequest& r) { r.y_aligned = false; }), Route::in_steps);
  EXPECT_EQ(route([](LayerRequest& r) { r.residual = Residual::bf16; }), Route::fused);
  EXPECT_EQ(route([](LayerRequest& r) { r.residual = Residual::f32; }), Route::fused);
  EXPECT_EQ(route([](LayerRequest& r) { r.saved = true; }), Route::in_steps);
  EXPECT_EQ(route([](LayerRequest& r) { r.norm = NormKind::none, r.residual_rows = true; }), Route::in_steps);
}

TEST(LayerPlan, ARecordedLayerKeepsItsProduct) {
  LayerRequest request = layer(64, 512, 512);
  request.saved = true;
  EXPECT_EQ(plan_layer(request).route, Route::in_steps);
}

TEST(LayerPlan, StepsLieInBf16WhereNoMeanIsTakenOffAfterwards) {
  const auto product = [](auto change) {
    LayerRequest request = layer(1000, 512, 256);
    request.norm = NormKind::rms;
    change(request);
    const LayerPlan plan = plan_layer(request);
    EXPECT_EQ(plan.route, Route::in_steps);
    return plan.product;
  };
  EXPECT_EQ(product([](LayerRequest&) {}), DType::bf16);
  EXPECT_EQ(product([](LayerRequest& r) { r.norm = NormKind::swish_rms; }), DType::bf16);
  EXPECT_EQ(product([](LayerRequest& r) { r.norm = NormKind::block; }), DType::bf16);
  EXPECT_EQ(product([](LayerRequest& r) { r.y = DType::e4m3; }), DType::bf16);
  EXPECT_EQ(product([](LayerRequest& r) { r.n = 509; }), DType::bf16);
  EXPECT_EQ(product([](LayerRequest& r) { r.saved = true; }), DType::bf16);
  EXPECT_EQ(product([](LayerRequest& r) { r.saved = true, r.norm = NormKind::none; }), DType::f32);
  EXPECT_EQ(product([](LayerRequest& r) { r.residual = Residual::f32; }), DType::bf16);
  EXPECT_EQ(product([](LayerRequest& r) { r.residual = Residual::bf16, r.residual_first = true; }), DType::bf16);
  EXPECT_EQ(product([](LayerRequest& r) { r.residual = Residual::f32, r.residual_first = true; }), DType::f32);
  EXPECT_EQ(product([](LayerRequest& r) { r.norm = NormKind::layer; }), DType::f32);
  EXPECT_EQ(product([](LayerRequest& r) { r.y = DType::f32; }), DType::f32);
  EXPECT_EQ(product([](LayerRequest& r) { r.y = DType::f32, r.saved = true; }), DType::f32);
}

// 6 bytes an element of y instead of 10: where nothing but memory counts, that is what the model says.
TEST(LayerPlan, StepsInBf16MoveFewerBytes) {
  LayerRequest request = layer(65536, 2048, 16);
  request.x = DType::e4m3;
  request.norm = NormKind::layer;
  const double wide = plan_layer(request).us;
  request.norm = NormKind::rms;
  EXPECT_LT(plan_layer(request).us, 0.65 * wide);
}

TEST(LayerPlan, TimesNeverFallAsRowsGrowAndEveryStepCosts) {
  for (const NormKind norm : {NormKind::none, NormKind::layer, NormKind::rms, NormKind::block})
    for (const DType y : {DType::f32, DType::bf16, DType::e4m3})
      for (const std::int64_t n : {8, 100, 128, 256, 512, 2048})
        for (const std::int64_t k : {0, 8, 100, 512, 2048}) {
          double before = 0;
          for (std::int64_t m = 1; m <= 65536; m += 1 + m / 11) {
            LayerRequest request = layer(m, n, k);
            request.norm = norm;
            request.y = y;
            const double us = plan_layer(request).us;
            ASSERT_GE(us, before) << m << " " << n << " " << k;
            before = us;
            request.x = DType::e4m3;
            ASSERT_LT(plan_layer(request).us, us);  // codes need no rounding
          }
        }
}

}  // namespace
}  // namespace octavo::cuda
