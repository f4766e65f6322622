// How a linear layer runs on Hopper: which of three routes, by which GEMM kernel, in about what time. A pure function
// without CUDA: the launcher follows it, dispatch reads its time, tests ask it on any machine.
#pragma once

#include "gemm/tile_choice.hpp"
#include "octavo/linear.hpp"

namespace octavo::cuda {

enum class Route : std::uint8_t {
  whole,     // no norm: bias, activation and residual belong to the GEMM, into y
  fused,     // a norm over few enough columns or in blocks of a tile's: all of it belongs to the GEMM, into BF16, or
             // into E4M3 codes where a tile holds the row
  in_steps,  // the product into scratch memory, the rest by finish_linear
};

struct LayerRequest {
  Product product = Product::e4m3;
  std::int64_t m = 0, n = 0, k = 0;        // the layer's own
  DType x = DType::bf16, y = DType::bf16;  // E4M3: codes
  NormKind norm = NormKind::none;
  std::int64_t norm_block = 256;
  Residual residual = Residual::none;
  bool residual_first = false;
  bool residual_rows = false;  // of the residual are named by an index, which finish_linear alone reads
  bool y_aligned = true;       // as TileRequest::d_aligned
  bool saved = false;          // a backward wants what the norm saw, in y's type
  bool saved_aligned = true;   // as y_aligned
  int batch = 1;               // layers of this shape in one launch of each kernel
  int sm_count = 132;

  bool operator==(const LayerRequest&) const = default;
};

struct LayerPlan {
  Route route = Route::in_steps;
  int tile = -1;  // of kTiles
  double us = 0;  // all kernels, launches included; never falling as m grows
  // In steps, what lies between them. BF16: with bias and a residual before the norm, and it is what is saved.
  DType product = DType::f32;
};

// m, n > 0. The plan always has a tile.
LayerPlan plan_layer(const LayerRequest& request);

// The same, remembered by the calling thread for as long as no times of tiles change.
LayerPlan recent_plan(const LayerRequest& request);

// What this norm over rows of n columns comes down to in a GEMM: layer or rms, and the columns of a block, 0 for all.
struct GemmNorm {
  NormKind kind;
  int block;
};
GemmNorm gemm_norm(NormKind norm, std::int64_t norm_block, std::int64_t n);

}  // namespace octavo::cuda
