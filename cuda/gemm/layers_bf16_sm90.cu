// BF16 layers.
#include "gemm/kernel.cuh"

namespace octavo::cuda {

OCTAVO_TILE("bf16_swap_64x16");
OCTAVO_TILE("bf16_64x128");
OCTAVO_TILE("bf16_128x256");

}  // namespace octavo::cuda
