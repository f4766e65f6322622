#include "cpu/avx512/linear_grad_input_e4m3_row.hpp"

namespace octavo::avx512_kernels {

void linear_grad_input_e4m3_row(const GradInputArgs& args) {
  RowClass<RegisterProduct<Bf16Dot>> kernel(*args.weight);
  run_grad_input(args, kernel);
}

}  // namespace octavo::avx512_kernels
