// The linear layer's classes on AMX tiles.
#include "cpu/amx/tile_product.hpp"
#include "cpu/avx512/linear_bf16.hpp"
#include "cpu/avx512/linear_e4m3_row.hpp"
#include "cpu/avx512/linear_e4m3_weight_only.hpp"
#include "cpu/avx512/linear_int8_dynamic.hpp"

namespace octavo::amx_kernels {

namespace classes = avx512_kernels;

void linear_bf16(const LinearArgs& args) { run_linear<classes::Bf16Class<TileProduct<Bf16Tiles>>>(args); }
void linear_e4m3_row(const LinearArgs& args) { run_linear<classes::RowClass<TileProduct<Bf16Tiles>>>(args); }
void linear_e4m3_weight_only(const LinearArgs& args) {
  run_linear<classes::WeightOnlyClass<TileProduct<Bf16Tiles>>>(args);
}
void linear_int8_dynamic(const LinearArgs& args) { run_linear<classes::Int8Class<TileProduct<Int8Tiles>>>(args); }

}  // namespace octavo::amx_kernels
