// Which GEMM kernel for which problem: what each tile takes, said once, and a model of its time that ranks those that
// take the problem, behind those that were measured here (measured_tiles.hpp). Without CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gemm/tiles.hpp"

namespace octavo::cuda {

enum class Residual : std::uint8_t { none, bf16, f32 };
constexpr int bytes_of(Residual residual) {
  return residual == Residual::none ? 0 : residual == Residual::bf16 ? 2 : 4;
}

struct TileRequest {
  Product product = Product::e4m3;
  std::int64_t m = 0, n = 0, k = 0;
  Major x_major = Major::k, w_major = Major::k;
  bool d_is_f32 = false;        // else BF16
  bool d_is_codes = false;      // E4M3 with a scale a row
  bool d_aligned = true;        // address and leading dimension multiples of 16 bytes
  bool norm = false;            // in the kernel
  std::int64_t norm_block = 0;  // columns that share its statistics; 0: whole rows
  Residual residual = Residual::none;
  int batch = 1;       // products of these sizes in one launch
  int sm_count = 132;  // of an H100 or H200 SXM
};

// Empty when the tile computes this; else why not. Never depends on m, so that the best time cannot fall as m grows.
std::string tile_refusal(const Tile& tile, const TileRequest& request);

// Microseconds, launch included, never falling as m grows. A model (constants in tile_choice.cpp): it ranks, it does
// not promise.
double tile_estimate_us(const Tile& tile, const TileRequest& request);

struct RankedTile {
  int index;  // of kTiles
  double us;
};

// The tiles that take the request, fastest first by what was measured on this machine, else by the model; of equals
// the one first in the table.
std::vector<RankedTile> rank_tiles(const TileRequest& request);

// The first of rank_tiles, or -1.
int choose_tile(const TileRequest& request);

// A sum over many rows, cut so that its slices fill the multiprocessors: `count` slices of `rows` each and one of
// `rest` rows, which is shorter than the others and may be none.
struct Slices {
  std::int64_t count, rows, rest;
  std::int64_t total() const { return count + (rest > 0 ? 1 : 0); }
};
// `blocks`: that one slice occupies. Slices have a multiple of 64 rows and at least 1024, so that adding them up is
// cheap beside making them.
Slices slices_of(std::int64_t rows, std::int64_t blocks, int sm_count);

// What a size must be rounded up to, so that rows of it can be loaded.
constexpr std::int64_t padded(std::int64_t size, std::int64_t multiple) {
  return (size + multiple - 1) / multiple * multiple;
}

}  // namespace octavo::cuda
