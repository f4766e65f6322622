#include "gemm/layer_plan.hpp"

#include <algorithm>

namespace octavo::cuda {
namespace {

// A kernel that reads and writes so many bytes. The bandwidth is a little below an H100's peak; see tile_choice.cpp.
double pass_us(double bytes) { return 2.5 + bytes / 2.5e6; }

TileRequest tile_request(const LayerRequest& r) {
  TileRequest tile;
  tile.product = r.product;
  tile.m = r.m;
  tile.n = r.n;
  tile.k = padded(std::max<std::int64_t>(r.k, 1), alignment_of(r.product));
  tile.sm_count = r.sm_count;
  tile.d_is_f32 = true;
  return tile;
}

}  // namespace

NormKind whole_row_norm(NormKind norm, std::int64_t norm_block, std::int64_t n) {
  switch (norm) {
    case NormKind::none: return NormKind::none;
    case NormKind::layer: return NormKind::layer;
    case NormKind::block: return n <= norm_block ? NormKind::rms : NormKind::none;
    default: return NormKind::rms;  // rms, swish_rms
  }
}

LayerPlan plan_layer(const LayerRequest& r) {
  const double rows = static_cast<double>(r.m), outputs = rows * static_cast<double>(r.n);
  double around = 0;  // rounding x and y
  if (size_of(r.x) != static_cast<std::size_t>(bytes_of(r.product)))
    around += pass_us(rows * static_cast<double>(r.k) * static_cast<double>(size_of(r.x) + bytes_of(r.product)));
  const bool codes = size_of(r.y) == 1;

  TileRequest request = tile_request(r);
  if (!r.saved && !r.residual_rows) {  // else the product is wanted beside y, or finish_linear's way to the residual
    TileRequest whole = request;
    whole.d_is_f32 = codes || r.y == DType::f32;
    whole.d_aligned = r.y_aligned;
    whole.residual = r.residual;
    whole.norm = whole_row_norm(r.norm, r.norm_block, r.n) != NormKind::none;
    if (whole.norm == (r.norm != NormKind::none))
      if (const auto ranked = rank_tiles(whole); !ranked.empty())
        return {whole.norm ? Route::fused : Route::whole, ranked.front().index,
                around + ranked.front().us + (codes ? pass_us(outputs * 5) : 0)};
  }
  const RankedTile product = rank_tiles(request).front();
  const double bytes = outputs * (4 + static_cast<double>(size_of(r.y)) + (r.residual != Residual::none ? 2 : 0));
  return {Route::in_steps, product.index, around + product.us + pass_us(bytes)};
}

}  // namespace octavo::cuda
