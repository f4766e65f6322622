#include "cpu/avx512/linear_e4m3_weight_only.hpp"

namespace octavo::avx512_kernels {

void linear_e4m3_weight_only(const LinearArgs& args) { run_linear<WeightOnlyClass<RegisterProduct<Bf16Dot>>>(args); }

}  // namespace octavo::avx512_kernels
