#include "cpu/avx512/linear_grad_weight_e4m3_row.hpp"

#include "cpu/avx512/register_strips.hpp"

namespace octavo::avx512_kernels {

void linear_grad_weight_e4m3_row(const GradWeightArgs& args) { run_grad_weight_e4m3_row<RegisterStrips>(args); }

}  // namespace octavo::avx512_kernels
