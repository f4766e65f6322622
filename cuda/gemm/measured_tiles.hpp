// Times of GEMM kernels measured on this machine, which come before the model's. Plain C++, filled from Python
// (octavo.ops.dispatch.tune), read by rank_tiles.
#pragma once

#include "gemm/tile_choice.hpp"

namespace octavo::cuda {

// Keep the times of these tiles on `request`, in place of what was kept for it. Rows are told apart up to a power of
// two, and one time stands for all residuals and numbers of multiprocessors: a residual costs every tile the same.
void keep_tile_times(const TileRequest& request, const std::vector<RankedTile>& times);
void forget_tile_times();

// Another number after every change of them, for what was decided by them.
std::uint64_t tile_times_version();

// `ranked` by the model, in the order that was measured. Measured tiles go first, by their times. Times never fall as
// m grows: a bucket's are at least the best of every bucket below, and where nothing was measured the model's stay
// between the best times of the measured buckets around.
std::vector<RankedTile> by_measured_times(const TileRequest& request, std::vector<RankedTile> ranked);

}  // namespace octavo::cuda
