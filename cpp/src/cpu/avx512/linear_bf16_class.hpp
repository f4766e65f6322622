// What the classes that multiply in BF16 share: x as BF16 rows.
#pragma once

#include <cstring>

#include "cpu/avx512/linear_activations.hpp"

namespace octavo::avx512_kernels {
namespace {

inline void round_to_bf16(const float* x, std::int64_t k, char* out) {
  const auto step = [&](std::int64_t i, __mmask16 low, __mmask16 high) {
    const __m512bh both =
        _mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(high, x + i + 16), _mm512_maskz_loadu_ps(low, x + i));
    _mm512_storeu_si512(out + i * 2, reinterpret_cast<__m512i>(both));
  };
  std::int64_t i = 0;
  for (; i + 32 <= k; i += 32) step(i, 0xffff, 0xffff);
  if (i < k) step(i, first_lanes(k - i), first_lanes(k - i - 16));  // the buffer is padded; beyond K comes zero
}

// BF16 rows serve as they are where `row_bytes`, what a product reads at a time, divides them.
template <std::int64_t row_bytes>
RoundedRows bf16_rows(const LinearArgs& args, std::int64_t first, std::int64_t count, void* buffer, float* scale) {
  const MatrixView& x = args.x;
  for (std::int64_t r = 0; r < count; ++r) scale[r] = 1.0f;
  if (x.dtype == DType::bf16 && x.cols * 2 % row_bytes == 0) return {row_of(x, first), x.row_stride * 2};
  const std::int64_t stride = round_up(x.cols * 2, 64);
  char* out = static_cast<char*>(buffer);
  for (std::int64_t r = 0; r < count; ++r, out += stride) {
    if (x.dtype == DType::f32) {
      round_to_bf16(reinterpret_cast<const float*>(row_of(x, first + r)), x.cols, out);
    } else {
      std::memcpy(out, row_of(x, first + r), to_bytes(x.cols) * 2);
      std::memset(out + x.cols * 2, 0, to_bytes(stride - x.cols * 2));
    }
  }
  return {static_cast<const char*>(buffer), stride};
}

}  // namespace
}  // namespace octavo::avx512_kernels
