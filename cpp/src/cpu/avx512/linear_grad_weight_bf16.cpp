#include "cpu/avx512/linear_grad_weight_bf16.hpp"

#include "cpu/avx512/register_strips.hpp"

namespace octavo::avx512_kernels {

void linear_grad_weight_bf16(const GradWeightArgs& args) { run_grad_weight_bf16<RegisterStrips>(args); }

}  // namespace octavo::avx512_kernels
