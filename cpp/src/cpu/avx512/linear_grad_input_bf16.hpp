// grad and the dequantized W in BF16, FP32 sums.
#pragma once

#include "cpu/avx512/linear_grad_input_class.hpp"

namespace octavo::avx512_kernels {
namespace {

template <class Product>
struct Bf16Class : TransposedClass<Product, false> {
  using TransposedClass<Product, false>::TransposedClass;
  RoundedRows round(const LinearArgs& args, std::int64_t first, std::int64_t count, void* buffer, float* scale) const {
    return bf16_rows<Product::kRowBytes>(args, first, count, buffer, scale);
  }
};

}  // namespace
}  // namespace octavo::avx512_kernels
