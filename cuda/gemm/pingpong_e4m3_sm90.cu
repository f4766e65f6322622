// E4M3 with promoted sums, ping-pong: an N tile that covers a narrow layer.
#include "gemm/kernel.cuh"

namespace octavo::cuda {

OCTAVO_TILE("e4m3_swap_64x64");
OCTAVO_TILE("e4m3_64x128");
OCTAVO_TILE("e4m3_64x192");

}  // namespace octavo::cuda
