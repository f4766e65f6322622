#include "cpu/avx512/linear_grad_input_bf16.hpp"

#include "cpu/amx/tile_product.hpp"

namespace octavo::amx_kernels {

void linear_grad_input_bf16(const GradInputArgs& args) {
  avx512_kernels::Bf16Class<TileProduct<Bf16Tiles>> kernel(*args.weight);
  avx512_kernels::run_grad_input(args, kernel);
}

}  // namespace octavo::amx_kernels
