// BF16 into FP32 or any width, and gradients, whose operands are read across their rows.
#include "gemm/kernel.cuh"

namespace octavo::cuda {

OCTAVO_TILE("bf16_direct_64x128");
OCTAVO_TILE("bf16_grad_input_64x128");
OCTAVO_TILE("bf16_grad_weight_64x128");

}  // namespace octavo::cuda
