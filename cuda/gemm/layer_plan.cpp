#include "gemm/layer_plan.hpp"

#include <algorithm>

#include "device/recent_calls.hpp"
#include "gemm/measured_tiles.hpp"

namespace octavo::cuda {
namespace {

// Whether what lies between the steps may be BF16: its rounding is one more of the kind that y's own is
// (KernelInfo::norm_input). A mean taken off afterwards would leave more of it; a residual in FP32 that comes before is
// for direct stores.
bool steps_in_bf16(const LayerRequest& r) {
  const bool y_fits = r.y == DType::bf16 || (r.y != DType::f32 && !r.saved);
  const bool norm_fits = r.norm != NormKind::none && r.norm != NormKind::layer;
  return y_fits && norm_fits && !(r.residual_first && r.residual == Residual::f32);
}

// A kernel that reads and writes so many bytes. The bandwidth is a little below an H100's peak; see tile_choice.cpp.
double pass_us(double bytes) { return 2.5 + bytes / 2.5e6; }

TileRequest tile_request(const LayerRequest& r) {
  TileRequest tile;
  tile.product = r.product;
  tile.m = r.m;
  tile.n = r.n;
  tile.k = padded(std::max<std::int64_t>(r.k, 1), alignment_of(r.product));
  tile.batch = r.batch;
  tile.sm_count = r.sm_count;
  return tile;
}

}  // namespace

GemmNorm gemm_norm(NormKind norm, std::int64_t norm_block, std::int64_t n) {
  switch (norm) {
    case NormKind::none: return {NormKind::none, 0};
    case NormKind::layer: return {NormKind::layer, 0};
    case NormKind::block: return {NormKind::rms, norm_block < n ? static_cast<int>(norm_block) : 0};
    default: return {NormKind::rms, 0};  // rms, swish_rms
  }
}

LayerPlan plan_layer(const LayerRequest& r) {
  const double rows = static_cast<double>(r.m) * r.batch, outputs = rows * static_cast<double>(r.n);
  double around = 0;  // rounding x and y
  if (size_of(r.x) != static_cast<std::size_t>(bytes_of(r.product)))
    around += pass_us(rows * static_cast<double>(r.k) * static_cast<double>(size_of(r.x) + bytes_of(r.product)));
  const bool codes = size_of(r.y) == 1;

  const bool narrow = steps_in_bf16(r) && !(r.residual_rows && r.residual_first);
  TileRequest request = tile_request(r);
  request.d_is_f32 = !narrow;
  if (narrow) request.d_aligned = !r.saved || r.saved_aligned;
  if (narrow && r.residual_first) request.residual = r.residual;
  const RankedTile product = rank_tiles(request).front();
  const int beside = (r.saved && !narrow ? static_cast<int>(size_of(r.y)) : 0) +
                     (narrow && r.residual_first ? 0 : bytes_of(r.residual));
  const double bytes = outputs * ((narrow ? 2 : 4) + static_cast<double>(size_of(r.y)) + beside);
  const LayerPlan in_steps{Route::in_steps, product.index, around + product.us + pass_us(bytes),
                           narrow ? DType::bf16 : DType::f32};
  if (r.saved || r.residual_rows) return in_steps;  // the product is wanted beside y, or the residual by name

  TileRequest whole = tile_request(r);
  whole.d_is_codes = r.y == DType::e4m3 && r.norm != NormKind::none;
  whole.d_is_f32 = !whole.d_is_codes && r.y != DType::bf16;
  whole.d_aligned = r.y_aligned;
  whole.residual = r.residual;
  whole.norm = r.norm != NormKind::none;
  whole.norm_block = gemm_norm(r.norm, r.norm_block, r.n).block;
  const auto ranked = rank_tiles(whole);
  if (ranked.empty()) return in_steps;
  const LayerPlan at_once{whole.norm ? Route::fused : Route::whole, ranked.front().index,
                          around + ranked.front().us + (codes && !whole.d_is_codes ? pass_us(outputs * 5) : 0)};
  return whole.norm && in_steps.us < at_once.us ? in_steps : at_once;
}

LayerPlan recent_plan(const LayerRequest& request) {
  struct Key {
    LayerRequest request;
    std::uint64_t times;
    bool operator==(const Key&) const = default;
  };
  thread_local RecentCalls<Key, LayerPlan, 64> plans;
  // Times first: a plan made while they change is kept with those before, which nobody asks for again.
  const Key key{request, tile_times_version()};
  const std::size_t hash = hash_of({request.m, request.n, request.k, static_cast<std::int64_t>(request.product),
                                    static_cast<std::int64_t>(request.norm), static_cast<std::int64_t>(request.y)});
  if (const LayerPlan* found = plans.find(key, hash)) return *found;
  return plans.keep(key, hash, plan_layer(request));
}

}  // namespace octavo::cuda
