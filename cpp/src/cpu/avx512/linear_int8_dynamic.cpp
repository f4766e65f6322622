#include "cpu/avx512/linear_int8_dynamic.hpp"

namespace octavo::avx512_kernels {

void linear_int8_dynamic(const LinearArgs& args) { run_linear<Int8Class<RegisterProduct<Int8Dot>>>(args); }

}  // namespace octavo::avx512_kernels
