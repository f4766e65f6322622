#include "cpu/avx512/linear_grad_input_e4m3_row.hpp"

#include "cpu/amx/tile_product.hpp"

namespace octavo::amx_kernels {

void linear_grad_input_e4m3_row(const GradInputArgs& args) {
  avx512_kernels::RowClass<TileProduct<Bf16Tiles>> kernel(*args.weight);
  avx512_kernels::run_grad_input(args, kernel);
}

}  // namespace octavo::amx_kernels
