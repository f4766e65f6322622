// grad in E5M2 with a scale per row, W's codes in E4M3: W's scales belong to the dimension that is summed over, so they
// are multiplied into grad before it is rounded. Both are exact in BF16.
#pragma once

#include "cpu/avx512/linear_float8_rows.hpp"
#include "cpu/avx512/linear_grad_input_class.hpp"

namespace octavo::avx512_kernels {
namespace {

template <class Product>
struct RowClass : TransposedClass<Product, true> {
  explicit RowClass(const PackedWeight& w) : TransposedClass<Product, true>(w), column(w.scale()) {}

  RoundedRows round(const LinearArgs& args, std::int64_t first, std::int64_t count, void* buffer, float* scale) const {
    const std::int64_t stride = round_up(args.x.cols * 2, 64);
    char* out = static_cast<char*>(buffer);
    over_scaled_rows(args.x, column, [&](const auto& row_at) {
      round_rows<E5m2Grid>(DType::e5m2, first, count, args.x.cols, out, stride, scale, row_at);
    });
    return {out, stride};
  }

  const float* column;
};

}  // namespace
}  // namespace octavo::avx512_kernels
