#include "cpu/avx512/linear_bf16.hpp"

namespace octavo::avx512_kernels {

void linear_bf16(const LinearArgs& args) { run_linear<Bf16Class<RegisterProduct<Bf16Dot>>>(args); }

}  // namespace octavo::avx512_kernels
