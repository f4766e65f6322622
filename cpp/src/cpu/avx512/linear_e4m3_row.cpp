#include "cpu/avx512/linear_e4m3_row.hpp"

namespace octavo::avx512_kernels {

void linear_e4m3_row(const LinearArgs& args) { run_linear<RowClass<RegisterProduct<Bf16Dot>>>(args); }

}  // namespace octavo::avx512_kernels
