// grad and the dequantized W in BF16, FP32 sums.
#include "cpu/avx512/linear_grad_input_class.hpp"

namespace octavo::avx512_kernels {
namespace {

struct Bf16Class : TransposedClass<false> {
  using TransposedClass::TransposedClass;
  RoundedRows round(const LinearArgs& args, std::int64_t first, std::int64_t count, void* buffer, float* scale) const {
    return bf16_rows(args, first, count, buffer, scale);
  }
};

}  // namespace

void linear_grad_input_bf16(const GradInputArgs& args) {
  Bf16Class kernel(*args.weight);
  run_grad_input(args, kernel);
}

}  // namespace octavo::avx512_kernels
