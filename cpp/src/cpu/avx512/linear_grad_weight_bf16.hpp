// grad and x in BF16, FP32 sums.
#pragma once

#include "cpu/avx512/linear_grad_weight_class.hpp"

namespace octavo::avx512_kernels {
namespace {

struct Bf16Class {
  DType grad, x;
  static constexpr const float *row_scale = nullptr, *column_scale = nullptr;

  template <class F>
  void with_grad_source(F f) const {
    with(grad, f);
  }
  template <class F>
  void with_x_source(F f) const {
    with(x, f);
  }
  template <class F>
  static void with(DType dtype, F f) {
    if (dtype == DType::bf16) {
      f(Bf16Pair{});
    } else {
      f(F32Pair{});
    }
  }
};

template <class Strips>
void run_grad_weight_bf16(const GradWeightArgs& args) {
  const Bf16Class kernel{args.grad.dtype, args.x.dtype};
  GradWeight<Bf16Class, Strips>(args, kernel).run();
}

}  // namespace
}  // namespace octavo::avx512_kernels
