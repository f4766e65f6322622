// E4M3 into FP32, or into BF16 of any width; with scales of blocks into both.
#include "gemm/kernel.cuh"

namespace octavo::cuda {

OCTAVO_TILE("e4m3_direct_64x128");
OCTAVO_TILE("e4m3_fast_direct_64x128");
OCTAVO_TILE("e4m3_block_128x128");

}  // namespace octavo::cuda
