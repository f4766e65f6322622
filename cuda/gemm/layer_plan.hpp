// How a linear layer runs on Hopper: which of three routes, by which GEMM kernel, in about what time. A pure function
// without CUDA: the launcher follows it, dispatch reads its time, tests ask it on any machine.
#pragma once

#include "gemm/tile_choice.hpp"
#include "octavo/linear.hpp"

namespace octavo::cuda {

enum class Route : std::uint8_t {
  whole,     // no norm: bias, activation and residual belong to the GEMM, into y
  fused,     // a norm over few enough columns, into BF16: the whole epilogue belongs to the GEMM
  in_steps,  // the product in FP32 into scratch memory, the rest by finish_linear
};

struct LayerRequest {
  Product product = Product::e4m3;
  std::int64_t m = 0, n = 0, k = 0;        // the layer's own
  DType x = DType::bf16, y = DType::bf16;  // E4M3: codes
  NormKind norm = NormKind::none;
  std::int64_t norm_block = 256;
  Residual residual = Residual::none;
  bool residual_rows = false;  // of the residual are named by an index
  bool y_aligned = true;       // as TileRequest::d_aligned
  bool saved = false;          // a backward wants what the norm saw
  int sm_count = 132;
};

struct LayerPlan {
  Route route = Route::in_steps;
  int tile = -1;  // of kTiles
  double us = 0;  // all kernels, launches included; never falling as m grows
};

// m, n > 0. The plan always has a tile.
LayerPlan plan_layer(const LayerRequest& request);

// What this norm comes down to over rows of n columns that a kernel sees whole: layer, rms, or none where it has
// blocks.
NormKind whole_row_norm(NormKind norm, std::int64_t norm_block, std::int64_t n);

}  // namespace octavo::cuda
