#include "cpu/avx512/linear_grad_input_int8_dynamic.hpp"

#include "cpu/amx/tile_product.hpp"

namespace octavo::amx_kernels {

void linear_grad_input_int8_dynamic(const GradInputArgs& args) {
  avx512_kernels::TransposedInt8<TileProduct<Int8Tiles>> kernel(*args.weight);
  avx512_kernels::run_grad_input(args, kernel);
}

}  // namespace octavo::amx_kernels
