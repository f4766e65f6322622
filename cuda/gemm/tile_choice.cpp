#include "gemm/tile_choice.hpp"

#include <algorithm>
#include <climits>

#include "gemm/measured_tiles.hpp"

namespace octavo::cuda {
namespace {

// Hopper, per multiprocessor and clock cycle. Peaks from NVIDIA's data sheet, the rest are expectations until a GPU has
// ranked these kernels.
constexpr double kClockGhz = 1.755;
constexpr double kInstructionRows = 64, kInstructionBytes = 32;  // of a product instruction: rows, bytes of K
constexpr double kSharedBytes = 128;                             // read from shared memory
constexpr double kL2Bytes = 64, kL2BytesAllBusy = 24;            // one busy multiprocessor; each of 132
constexpr double kLanes = 128;                                   // FP32 operations
constexpr double kHbmBytesPerNs = 3350;
constexpr double kLaunchUs = 2.5;
constexpr double kFillCycles = 1200;  // from the start of a block to its first product
constexpr double kFinishOperations = 8, kDirectStoreOperations = 16, kNormOperations = 20;  // per element of d

double ceil_div(double a, double b) { return static_cast<double>(static_cast<std::int64_t>((a + b - 1) / b)); }

struct Sides {
  double m, n;  // of the kernel's own d
};

Sides sides(const Tile& tile, const TileRequest& r) {
  const double m = static_cast<double>(r.m), n = static_cast<double>(r.n);
  return tile.swap ? Sides{n, m} : Sides{m, n};
}

double product_cycles(const Tile& tile) {
  const double step_bytes = tile.k * bytes_of(tile.product);
  // An instruction reads its 64 rows from shared memory whatever its width: narrow tiles wait for that.
  const double instruction = std::max(kInstructionRows * kInstructionBytes / kSharedBytes, tile.n / 2.0);
  const double instructions = tile.m / kInstructionRows * (step_bytes / kInstructionBytes);
  // Promotion adds every sum once for 128 of K; half of it hides behind the next products.
  const double promotion = promotes(tile.product) ? 0.5 * tile.m * tile.n / kLanes * (tile.k / 128.0) : 0.0;
  return instruction * instructions + promotion;
}

double load_cycles(const Tile& tile, double busy) {
  const double bytes = (tile.m + static_cast<double>(tile.n) / tile.cluster_m) * tile.k * bytes_of(tile.product);
  return bytes / std::max(kL2BytesAllBusy, std::min(kL2Bytes, kL2BytesAllBusy * 132 / busy));
}

double finish_cycles(const Tile& tile) {
  const double operations = tile.store == Store::direct ? kDirectStoreOperations
                            : tile.store == Store::norm ? kNormOperations
                                                        : kFinishOperations;
  const double warpgroups = tile.schedule == Schedule::cooperative ? 2 : 1;  // that finish a tile together
  return tile.m * tile.n * operations / (kLanes / 2 * warpgroups);
}

}  // namespace

std::string tile_refusal(const Tile& tile, const TileRequest& r) {
  if (tile.product != r.product) return "multiplies other formats, or sums them otherwise";
  if (tile.x_major != r.x_major || tile.w_major != r.w_major) return "reads its operands in another order";
  if (r.m <= 0 || r.n <= 0 || r.k <= 0) return "nothing to multiply";
  if (r.m > INT_MAX || r.n > INT_MAX || r.k > INT_MAX) return "takes sizes up to 2^31 - 1";
  const std::int64_t align = alignment_of(tile.product);
  if ((r.x_major == Major::k ? r.k : r.m) % align != 0) return "rows of x must be multiples of 16 bytes";
  if ((r.w_major == Major::k ? r.k : r.n) % align != 0) return "rows of w must be multiples of 16 bytes";
  if (r.norm != (tile.store == Store::norm)) return r.norm ? "has no norm" : "always has a norm";
  if (r.d_is_codes && !r.norm) return "writes codes behind a norm only";
  if (r.batch > 1 && (r.d_is_codes || r.residual != Residual::none)) return "takes no residual and no codes in batches";
  if (r.batch > 1 && tile.product == Product::e4m3_block) return "takes no batches";
  if (r.norm && (r.norm_block == 0 || r.d_is_codes) && r.n > tile.n) return "n does not fit one tile";
  if (r.norm && (r.norm_block % kNormStep != 0 || (r.norm_block != 0 && tile.n % r.norm_block != 0)))
    return "the norm's blocks do not divide its tile";
  if (tile.store == Store::direct) return "";
  if (r.d_is_f32) return "writes BF16";
  if (r.n % 8 != 0 || !r.d_aligned) return "rows of d must start at multiples of 16 bytes";
  if (r.residual == Residual::f32 && !r.norm) return "reads residuals in BF16";
  return "";
}

double tile_estimate_us(const Tile& tile, const TileRequest& r) {
  const Sides d = sides(tile, r);
  const double rows = ceil_div(ceil_div(d.m, tile.m), tile.cluster_m) * tile.cluster_m;
  const double blocks = rows * ceil_div(d.n, tile.n) * r.batch;
  const double places = r.sm_count / tile.cluster_m * tile.cluster_m;  // one block a multiprocessor: it fills the
  const double turns = ceil_div(blocks, places);                       // registers or the shared memory
  const double busy = std::min(blocks, places);

  const double steps = ceil_div(static_cast<double>(r.k), tile.k);
  const double mainloop = steps * std::max(product_cycles(tile), load_cycles(tile, busy));
  const double finish = finish_cycles(tile);
  double cycles = kFillCycles;
  switch (tile.schedule) {
    case Schedule::pingpong:  // one tile's products beside the other's epilogue
      cycles += mainloop + (turns - 1) * std::max(mainloop, finish) + finish;
      break;
    case Schedule::cooperative: cycles += turns * (mainloop + finish); break;
    case Schedule::plain: cycles = turns * (kFillCycles + mainloop + finish); break;  // a block for every tile
  }
  const double m = static_cast<double>(r.m), n = static_cast<double>(r.n), k = static_cast<double>(r.k);
  const double of_d = r.d_is_codes ? 1 : r.d_is_f32 ? 4 : 2;
  const double bytes = ((m + n) * k * bytes_of(tile.product) + m * n * (of_d + bytes_of(r.residual))) * r.batch;
  return kLaunchUs + std::max(cycles / kClockGhz, bytes / kHbmBytesPerNs) * 1e-3;
}

std::vector<RankedTile> rank_tiles(const TileRequest& request) {
  std::vector<RankedTile> ranked;
  for (int i = 0; i < kTileCount; ++i) {
    const Tile& tile = kTiles[static_cast<std::size_t>(i)];
    if (tile_refusal(tile, request).empty()) ranked.push_back({i, tile_estimate_us(tile, request)});
  }
  std::stable_sort(ranked.begin(), ranked.end(), [](const RankedTile& a, const RankedTile& b) { return a.us < b.us; });
  return request.batch > 1 ? ranked : by_measured_times(request, std::move(ranked));  // which are of one product
}

int choose_tile(const TileRequest& request) {
  const std::vector<RankedTile> ranked = rank_tiles(request);
  return ranked.empty() ? -1 : ranked.front().index;
}

Slices slices_of(std::int64_t rows, std::int64_t blocks, int sm_count) {
  constexpr std::int64_t kLeast = 1024, kStep = 64;
  const std::int64_t wanted = std::max<std::int64_t>(sm_count / std::max<std::int64_t>(blocks, 1), 1);
  const std::int64_t length = std::max(padded((rows + wanted - 1) / wanted, kStep), kLeast);
  return {rows / length, length, rows % length};
}

}  // namespace octavo::cuda
