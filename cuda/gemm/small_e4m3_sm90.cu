// Few rows: d^T = w x^T, sums in FP32 every 128 of K or in the tensor core.
#include "gemm/kernel.cuh"

namespace octavo::cuda {

OCTAVO_TILE("e4m3_swap_64x16");
OCTAVO_TILE("e4m3_fast_swap_64x16");
OCTAVO_TILE("e4m3_direct_swap_64x16");

}  // namespace octavo::cuda
