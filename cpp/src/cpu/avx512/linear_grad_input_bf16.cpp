#include "cpu/avx512/linear_grad_input_bf16.hpp"

namespace octavo::avx512_kernels {

void linear_grad_input_bf16(const GradInputArgs& args) {
  Bf16Class<RegisterProduct<Bf16Dot>> kernel(*args.weight);
  run_grad_input(args, kernel);
}

}  // namespace octavo::avx512_kernels
