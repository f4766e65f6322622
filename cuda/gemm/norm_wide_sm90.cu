// A norm over up to 256 columns inside the epilogue, where promoted sums would not fit.
#include "gemm/kernel.cuh"

namespace octavo::cuda {

OCTAVO_TILE("e4m3_fast_norm_64x256");
OCTAVO_TILE("bf16_norm_64x256");

}  // namespace octavo::cuda
