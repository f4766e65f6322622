// Measured times before the model's: the order they give, and that times never fall as m grows.
#include "gemm/measured_tiles.hpp"

#include <gtest/gtest.h>

#include <string>

#include "gemm/layer_plan.hpp"
#include "octavo/dispatch.hpp"

namespace octavo::cuda {
namespace {

class MeasuredTiles : public ::testing::Test {
 protected:
  void SetUp() override { forget_tile_times(); }
  void TearDown() override { forget_tile_times(); }

  static TileRequest request(std::int64_t m, std::int64_t n = 512, std::int64_t k = 1024) {
    TileRequest r;
    r.product = Product::e4m3;
    r.m = m;
    r.n = n;
    r.k = k;
    return r;
  }
  static std::string chosen(const TileRequest& r) { return kTiles[static_cast<std::size_t>(choose_tile(r))].name; }
  static void keep(const TileRequest& r, const std::vector<std::pair<const char*, double>>& times) {
    std::vector<RankedTile> found;
    for (const auto& [name, us] : times) found.push_back({tile_index(name), us});
    keep_tile_times(r, found);
  }
};

TEST_F(MeasuredTiles, TheFastestMeasuredOneIsTheChoiceInItsBucketAlone) {
  const std::string model = chosen(request(4096)), below = chosen(request(2048));
  const char* other = model == "e4m3_64x192" ? "e4m3_128x128" : "e4m3_64x192";
  keep(request(4096), {{other, 5.0}, {model.c_str(), 9.0}});
  EXPECT_EQ(chosen(request(4096)), other);
  EXPECT_EQ(chosen(request(2049)), other);  // up to the next power of two
  EXPECT_EQ(chosen(request(2048)), below);
  const auto ranked = rank_tiles(request(4096));
  EXPECT_EQ(ranked[0].us, 5.0);
  EXPECT_EQ(ranked[1].us, 9.0);
  TileRequest f32 = request(4096);
  f32.d_is_f32 = true;  // another product
  EXPECT_EQ(chosen(f32), "e4m3_direct_64x128");
  TileRequest with_residual = request(4096);
  with_residual.residual = Residual::bf16;  // costs every tile the same
  EXPECT_EQ(chosen(with_residual), other);
  forget_tile_times();
  EXPECT_EQ(chosen(request(4096)), model);
}

TEST_F(MeasuredTiles, ATileThatDoesNotTakeTheRequestIsNeverTheChoice) {
  TileRequest odd = request(64, 20);  // n no multiple of 8: direct stores alone
  const std::string model = chosen(odd);
  keep(odd, {{"e4m3_64x128", 0.1}});
  EXPECT_EQ(chosen(odd), model);
  EXPECT_GT(rank_tiles(odd).front().us, 1.0);
}

TEST_F(MeasuredTiles, WhatWasNotTimedStandsBehindWhatWas) {
  keep(request(4096), {{"e4m3_swap_64x16", 1e4}});
  const auto ranked = rank_tiles(request(4096));
  EXPECT_EQ(chosen(request(4096)), "e4m3_swap_64x16");
  for (std::size_t i = 1; i < ranked.size(); ++i) EXPECT_GE(ranked[i].us, ranked[i - 1].us);
}

TEST_F(MeasuredTiles, ALaterTimeReplacesAnEarlier) {
  keep(request(4096), {{"e4m3_64x192", 5.0}, {"e4m3_128x128", 9.0}});
  keep(request(3000), {{"e4m3_128x128", 7.0}, {"e4m3_64x192", 8.0}});
  EXPECT_EQ(chosen(request(4096)), "e4m3_128x128");
}

// Noise says that 256 rows take longer than 1024; plans still take no less time for more rows, measured or not.
TEST_F(MeasuredTiles, TimesNeverFallAsRowsGrow) {
  keep(request(16), {{"e4m3_swap_64x16", 3.0}, {"e4m3_64x128", 6.0}});
  keep(request(256), {{"e4m3_swap_64x64", 8.0}, {"e4m3_64x128", 7.5}});
  keep(request(1024), {{"e4m3_64x128", 5.0}, {"e4m3_128x128", 5.5}});
  keep(request(16384), {{"e4m3_128x128", 60.0}, {"e4m3_64x192", 58.0}});
  double before = 0.0, layer_before = 0.0;
  for (std::int64_t m = 1; m <= 65536; m += 1 + m / 9) {
    const auto ranked = rank_tiles(request(m));
    ASSERT_GE(ranked.front().us, before) << m;
    for (std::size_t i = 1; i < ranked.size(); ++i) ASSERT_GE(ranked[i].us, ranked[i - 1].us) << m;
    before = ranked.front().us;
    LayerRequest layer;
    layer.m = m;
    layer.n = 512;
    layer.k = 1024;
    const double us = plan_layer(layer).us;
    ASSERT_GE(us, layer_before) << m;
    layer_before = us;
  }
  EXPECT_EQ(rank_tiles(request(1000)).front().us, 7.5);
  EXPECT_EQ(rank_tiles(request(10000)).front().us, 58.0);
  EXPECT_LE(rank_tiles(request(4000)).front().us, 58.0);
  EXPECT_GE(rank_tiles(request(4000)).front().us, 7.5);
}

TEST_F(MeasuredTiles, RememberedPlansEndWithTheTimesTheyWereMadeOf) {
  LayerRequest layer;
  layer.m = 4096;
  layer.n = 512;
  layer.k = 1024;
  const auto expect_fresh = [&] {
    for (int twice = 0; twice < 2; ++twice)
      for (const int m : {1, 64, 4096})
        for (const NormKind norm : {NormKind::none, NormKind::layer, NormKind::rms})
          for (const bool saved : {false, true}) {
            LayerRequest r = layer;
            r.m = m;
            r.norm = norm;
            r.saved = saved;
            const LayerPlan fresh = plan_layer(r), found = recent_plan(r);
            ASSERT_EQ(found.tile, fresh.tile);
            ASSERT_EQ(found.route, fresh.route);
            ASSERT_EQ(found.us, fresh.us);
            ASSERT_EQ(found.product, fresh.product);
          }
  };
  expect_fresh();
  const int model = recent_plan(layer).tile;
  const char* other = model == tile_index("e4m3_64x192") ? "e4m3_128x128" : "e4m3_64x192";
  keep(request(4096), {{other, 0.1}});
  EXPECT_EQ(recent_plan(layer).tile, tile_index(other));
  expect_fresh();
  keep(request(4096), {{kTiles[static_cast<std::size_t>(model)].name, 0.1}, {other, 9.0}});
  EXPECT_EQ(recent_plan(layer).tile, model);
  expect_fresh();
  forget_tile_times();
  EXPECT_EQ(recent_plan(layer).tile, model);
  expect_fresh();
}

}  // namespace
}  // namespace octavo::cuda
