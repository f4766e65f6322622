#include "cpu/avx512/linear_grad_weight_bf16.hpp"

#include "cpu/amx/tile_strips.hpp"

namespace octavo::amx_kernels {

void linear_grad_weight_bf16(const GradWeightArgs& args) { avx512_kernels::run_grad_weight_bf16<TileStrips>(args); }

}  // namespace octavo::amx_kernels
