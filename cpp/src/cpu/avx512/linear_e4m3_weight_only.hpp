// x in BF16, W in E4M3 with a scale per row (W8A16), FP32 sums.
#pragma once

#include "cpu/avx512/linear_e4m3_class.hpp"

namespace octavo::avx512_kernels {
namespace {

template <class Product>
struct WeightOnlyClass : E4m3Class<Product> {
  using E4m3Class<Product>::E4m3Class;

  RoundedRows round(const LinearArgs& args, std::int64_t first, std::int64_t count, void* buffer, float* scale) const {
    return bf16_rows<Product::kRowBytes>(args, first, count, buffer, scale);
  }
};

}  // namespace
}  // namespace octavo::avx512_kernels
