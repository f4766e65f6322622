// The choice of a GEMM kernel, without a device: every problem gets a kernel, the model's times never fall as m grows,
// and each kernel is the choice somewhere.
#include "gemm/tile_choice.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>

namespace octavo::cuda {
namespace {

constexpr std::int64_t kRows[] = {1,   2,   7,    8,    9,    16,   17,    48,    64,    65,    127,  128,
                                  129, 500, 1000, 1024, 2048, 4096, 10000, 16384, 32768, 65535, 65536};
constexpr std::int64_t kWidths[] = {8, 16, 64, 120, 128, 136, 192, 256, 264, 512, 1000, 1024, 2048};
constexpr Product kForward[] = {Product::e4m3, Product::e4m3_fast, Product::e4m3_block, Product::bf16};

const Tile& tile_at(int index) { return kTiles[static_cast<std::size_t>(index)]; }

TileRequest forward(Product product, std::int64_t m, std::int64_t n, std::int64_t k) {
  TileRequest request;
  request.product = product;
  request.m = m;
  request.n = n;
  request.k = padded(k, alignment_of(product));
  return request;
}

TEST(TileChoice, NamesAreUnique) {
  std::set<std::string> names;
  for (int i = 0; i < kTileCount; ++i) {
    EXPECT_TRUE(names.insert(tile_at(i).name).second) << tile_at(i).name;
    EXPECT_EQ(tile_index(tile_at(i).name), i);
  }
  EXPECT_EQ(tile_index("e4m3"), -1);
  EXPECT_EQ(tile_index(""), -1);
}

// cutlass-facts 0.1, 0.2: two sets of sums do not fit beside each other beyond 96 a thread; promotion wants k = 128.
TEST(TileChoice, TilesFitTheRegistersAndTheirInstructions) {
  for (const Tile& tile : kTiles) {
    const bool promoted = promotes(tile.product);
    const int warpgroups = tile.schedule == Schedule::cooperative ? 2 : 1;
    EXPECT_LE(tile.m * tile.n / (128 * warpgroups), promoted ? 96 : 128) << tile.name;
    EXPECT_EQ(tile.m % (64 * warpgroups), 0) << tile.name;
    EXPECT_EQ(tile.n % 8, 0) << tile.name;
    EXPECT_TRUE(!promoted || tile.k == 128) << tile.name;
    const bool k_major = tile.x_major == Major::k && tile.w_major == Major::k;
    EXPECT_TRUE(k_major || tile.product == Product::bf16) << tile.name;
    EXPECT_TRUE(tile.store != Store::norm || (tile.m == 64 && !tile.swap)) << tile.name;
  }
}

TEST(TileChoice, EveryProblemGetsAKernel) {
  for (const Product product : kForward)
    for (const std::int64_t m : kRows)
      for (std::int64_t n = 1; n <= 2048; n += n < 40 ? 1 : 61)
        for (const std::int64_t k : kWidths)
          for (const bool f32 : {false, true})
            for (const Residual residual : {Residual::none, Residual::bf16, Residual::f32}) {
              TileRequest request = forward(product, m, n, k);
              request.d_is_f32 = f32;
              request.residual = residual;
              const int tile = choose_tile(request);
              ASSERT_GE(tile, 0) << m << " " << n << " " << k;
              ASSERT_TRUE(tile_refusal(tile_at(tile), request).empty());
              if (f32 || n % 8 != 0 || residual == Residual::f32) {
                ASSERT_EQ(tile_at(tile).store, Store::direct);
              }
            }
}

TEST(TileChoice, TimesNeverFallAsRowsGrow) {
  for (int sm_count : {132, 114, 78})
    for (const Product product : kForward)
      for (const std::int64_t n : kWidths)
        for (const std::int64_t k : kWidths)
          for (const bool f32 : {false, true}) {
            double before = 0.0;
            for (std::int64_t m = 1; m <= 65536; m += 1 + m / 13) {
              TileRequest request = forward(product, m, n, k);
              request.d_is_f32 = f32;
              request.sm_count = sm_count;
              const auto ranked = rank_tiles(request);
              ASSERT_GE(ranked.front().us, before) << m << " " << n << " " << k;
              for (std::size_t i = 1; i < ranked.size(); ++i) ASSERT_GE(ranked[i].us, ranked[i - 1].us);
              before = ranked.front().us;
            }
          }
}

TEST(TileChoice, EveryKernelIsTheChoiceSomewhere) {
  std::set<int> chosen;
  for (const std::int64_t m : kRows)
    for (const std::int64_t n : kWidths)
      for (const std::int64_t k : kWidths) {
        for (const Product product : kForward)
          for (const bool f32 : {false, true})
            for (const bool norm : {false, true}) {
              TileRequest request = forward(product, m, n, k);
              request.d_is_f32 = f32;
              request.norm = norm;
              chosen.insert(choose_tile(request));
            }
        TileRequest gradient = forward(Product::e5m2, m, n, k);
        chosen.insert(choose_tile(gradient));
        gradient = forward(Product::bf16, m, n, k);
        gradient.w_major = Major::mn;
        chosen.insert(choose_tile(gradient));
        gradient.x_major = Major::mn;
        gradient.m = padded(m, 8);
        chosen.insert(choose_tile(gradient));
      }
  for (int i = 0; i < kTileCount; ++i) EXPECT_TRUE(chosen.contains(i)) << tile_at(i).name;
}

TEST(TileChoice, FewRowsFillTheNarrowSideOfTheTile) {
  for (const Product product : {Product::e4m3, Product::e4m3_fast, Product::bf16})
    for (const std::int64_t m : {1, 8, 16})
      for (const std::int64_t n : {256, 512, 2048}) {
        const Tile& tile = tile_at(choose_tile(forward(product, m, n, 512)));
        EXPECT_TRUE(tile.swap && tile.n == 16) << tile.name << " m " << m << " n " << n;
      }
}

TEST(TileChoice, ManyRowsOfAWideLayerGetTheLargestTile) {
  EXPECT_STREQ(tile_at(choose_tile(forward(Product::e4m3, 65536, 1024, 1024))).name, "e4m3_128x128");
  EXPECT_STREQ(tile_at(choose_tile(forward(Product::e4m3_fast, 65536, 1024, 1024))).name, "e4m3_fast_128x256");
  EXPECT_STREQ(tile_at(choose_tile(forward(Product::bf16, 65536, 1024, 1024))).name, "bf16_128x256");
}

// Many small products fill the multiprocessors together: their number counts, not the size of one.
TEST(TileChoice, BatchesCountAsSoManyTiles) {
  for (const Product product : {Product::e4m3, Product::e4m3_fast, Product::bf16}) {
    TileRequest request = forward(product, 128, 128, 128);
    for (const Tile& tile : kTiles) {
      if (!tile_refusal(tile, request).empty()) continue;
      double before = 0;
      for (const int batch : {1, 2, 64, 4096, 65535}) {
        TileRequest many = request;
        many.batch = batch;
        EXPECT_EQ(tile_refusal(tile, many), "");
        const double us = tile_estimate_us(tile, many);
        EXPECT_GE(us, before) << tile.name;
        before = us;
      }
      TileRequest stacked = request, many = request;  // one product of as many rows reads one weight only
      stacked.m *= 512;
      many.batch = 512;
      EXPECT_GE(tile_estimate_us(tile, many), tile_estimate_us(tile, stacked)) << tile.name;
    }
  }
  TileRequest many = forward(Product::e4m3_block, 128, 128, 128);
  many.batch = 2;
  EXPECT_EQ(choose_tile(many), -1);
  many = forward(Product::bf16, 128, 128, 128);
  many.batch = 2;
  many.residual = Residual::bf16;
  EXPECT_EQ(choose_tile(many), -1);
}

TEST(TileChoice, RefusalsNameTheirReason) {
  const Tile& tma = tile_at(tile_index("e4m3_64x128"));
  const Tile& norm = tile_at(tile_index("e4m3_norm_64x128"));
  TileRequest request = forward(Product::e4m3, 100, 128, 64);
  EXPECT_EQ(tile_refusal(tma, request), "");
  const auto with = [&](auto change) {
    TileRequest changed = request;
    change(changed);
    return tile_refusal(tma, changed);
  };
  EXPECT_EQ(with([](TileRequest& r) { r.n = 132; }), "rows of d must start at multiples of 16 bytes");
  EXPECT_EQ(with([](TileRequest& r) { r.d_aligned = false; }), "rows of d must start at multiples of 16 bytes");
  EXPECT_EQ(with([](TileRequest& r) { r.k = 72; }), "rows of x must be multiples of 16 bytes");
  EXPECT_EQ(with([](TileRequest& r) { r.d_is_f32 = true; }), "writes BF16");
  EXPECT_EQ(with([](TileRequest& r) { r.norm = true; }), "has no norm");
  EXPECT_EQ(with([](TileRequest& r) { r.d_is_codes = true; }), "writes codes behind a norm only");
  EXPECT_EQ(with([](TileRequest& r) { r.m = 0; }), "nothing to multiply");
  EXPECT_EQ(with([](TileRequest& r) { r.m = std::int64_t{1} << 31; }), "takes sizes up to 2^31 - 1");
  EXPECT_EQ(tile_refusal(norm, request), "always has a norm");
  request.norm = true;
  EXPECT_EQ(tile_refusal(norm, request), "");
  request.n = 136;
  EXPECT_EQ(tile_refusal(norm, request), "n does not fit one tile");
  request.norm_block = 64;
  EXPECT_EQ(tile_refusal(norm, request), "");
  request.d_is_codes = true;  // the scale is the row's
  EXPECT_EQ(tile_refusal(norm, request), "n does not fit one tile");
  request.n = 128;
  EXPECT_EQ(tile_refusal(norm, request), "");
  for (const std::int64_t block : {32, 96, 192, 256}) {
    request.norm_block = block;
    EXPECT_EQ(tile_refusal(norm, request), "the norm's blocks do not divide its tile");
  }
}

TEST(Slices, CoverTheRowsOnceAndFillTheMultiprocessors) {
  for (std::int64_t rows = 1; rows < 200000; rows += 1 + rows / 7)
    for (const std::int64_t blocks : {1, 3, 16, 132, 5000}) {
      const Slices s = slices_of(rows, blocks, 132);
      EXPECT_EQ(s.count * s.rows + s.rest, rows);
      EXPECT_LT(s.rest, s.rows);
      EXPECT_EQ(s.rows % 64, 0);
      EXPECT_GE(s.rows, 1024);
      EXPECT_LE(s.total() * blocks, std::max<std::int64_t>(132, blocks) + blocks);
    }
  EXPECT_EQ(slices_of(65536, 32, 132).total(), 4);
  EXPECT_EQ(slices_of(512, 1, 132).total(), 1);
}

}  // namespace
}  // namespace octavo::cuda
