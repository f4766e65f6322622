#include "cpu/avx512/linear_grad_weight_e4m3_row.hpp"

#include "cpu/amx/tile_strips.hpp"

namespace octavo::amx_kernels {

void linear_grad_weight_e4m3_row(const GradWeightArgs& args) {
  avx512_kernels::run_grad_weight_e4m3_row<TileStrips>(args);
}

}  // namespace octavo::amx_kernels
