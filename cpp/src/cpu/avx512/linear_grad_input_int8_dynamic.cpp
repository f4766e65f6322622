#include "cpu/avx512/linear_grad_input_int8_dynamic.hpp"

namespace octavo::avx512_kernels {

void linear_grad_input_int8_dynamic(const GradInputArgs& args) {
  TransposedInt8<RegisterProduct<Int8Dot>> kernel(*args.weight);
  run_grad_input(args, kernel);
}

}  // namespace octavo::avx512_kernels
