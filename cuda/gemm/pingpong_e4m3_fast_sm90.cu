// E4M3 summed in the tensor core, ping-pong.
#include "gemm/kernel.cuh"

namespace octavo::cuda {

OCTAVO_TILE("e4m3_fast_swap_64x64");
OCTAVO_TILE("e4m3_fast_64x128");
OCTAVO_TILE("e4m3_fast_64x256");

}  // namespace octavo::cuda
