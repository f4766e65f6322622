// Large E4M3 products: two warpgroups on one tile, two blocks sharing loads. And gradients, E5M2 x E4M3.
#include "gemm/kernel.cuh"

namespace octavo::cuda {

OCTAVO_TILE("e4m3_128x128");
OCTAVO_TILE("e4m3_fast_128x256");
OCTAVO_TILE("e5m2_direct_128x128");

}  // namespace octavo::cuda
