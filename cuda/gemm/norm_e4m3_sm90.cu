// A norm over the row inside the epilogue.
#include "gemm/kernel.cuh"

namespace octavo::cuda {

OCTAVO_TILE("e4m3_norm_64x128");
OCTAVO_TILE("e4m3_norm_64x192");

}  // namespace octavo::cuda
