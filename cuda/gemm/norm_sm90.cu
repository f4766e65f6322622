// A norm over the row inside the epilogue: up to 256 columns where promoted sums need no room beside them.
#include "gemm/kernel.cuh"

namespace octavo::cuda {

OCTAVO_TILE("e4m3_norm_64x128");
OCTAVO_TILE("e4m3_fast_norm_64x256");
OCTAVO_TILE("bf16_norm_64x256");

}  // namespace octavo::cuda
