// x and W in E4M3 with a scale per row (W8A8), FP32 sums. x is rounded onto the E4M3 grid and kept as BF16, exactly.
#pragma once

#include <algorithm>

#include "cpu/avx512/linear_e4m3_class.hpp"
#include "cpu/avx512/linear_float8_rows.hpp"

namespace octavo::avx512_kernels {
namespace {

template <class Row>
void round_matrix(const MatrixView& x, std::int64_t first, std::int64_t count, char* out, std::int64_t stride,
                  float* scale) {
  round_rows<E4m3Grid>(DType::e4m3, first, count, x.cols, out, stride, scale,
                       [&](std::int64_t r) { return Row(row_of(x, r)); });
}

template <class Product>
struct RowClass : E4m3Class<Product> {
  using E4m3Class<Product>::E4m3Class;

  // Codes as the BF16 numbers they stand for.
  void decode_rows(const MatrixView& x, std::int64_t first, std::int64_t count, char* out, std::int64_t stride) const {
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);  // so that the unpacked halves are in order
    for (std::int64_t r = 0; r < count; ++r, out += stride) {
      const char* row = row_of(x, first + r);
      for (std::int64_t i = 0; i < x.cols; i += 64) {
        const std::int64_t left = x.cols - i;
        const __mmask64 mask = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
        __m512i low, high;
        this->weights.decode(_mm512_permutexvar_epi64(order, _mm512_maskz_loadu_epi8(mask, row + i)), low, high);
        _mm512_storeu_si512(out + i * 2, low);
        if (left > 32) _mm512_storeu_si512(out + i * 2 + 64, high);
      }
    }
  }

  RoundedRows round(const LinearArgs& args, std::int64_t first, std::int64_t count, void* buffer, float* scale) const {
    const std::int64_t stride = round_up(args.x.cols * 2, 64);
    char* out = static_cast<char*>(buffer);
    if (args.x.dtype == DType::e4m3) {
      std::copy_n(args.x_scale + first, count, scale);
      decode_rows(args.x, first, count, out, stride);
    } else if (args.x.dtype == DType::bf16) {
      round_matrix<Bf16Row>(args.x, first, count, out, stride, scale);
    } else {
      round_matrix<F32Row>(args.x, first, count, out, stride, scale);
    }
    return {out, stride};
  }
};

}  // namespace
}  // namespace octavo::avx512_kernels
