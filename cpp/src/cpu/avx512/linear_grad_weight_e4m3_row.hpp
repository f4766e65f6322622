// grad in E5M2 and x in E4M3, each with a scale per column: the rows of the product's operands. Both are exact in BF16.
#pragma once

#include "cpu/avx512/float8_rounding.hpp"
#include "cpu/avx512/linear_grad_weight_class.hpp"

namespace octavo::avx512_kernels {
namespace {

// Scale and multiplier of the columns [begin, end) of v; NaN and infinities are skipped.
template <class Row>
void find_scales(const MatrixView& v, std::int64_t begin, std::int64_t end, DType format, float* scale,
                 float* multiplier) {
  for (std::int64_t j = begin; j < end; ++j) scale[j] = 0.0f;
  for (std::int64_t r = 0; r < v.rows; ++r) {
    const Row row(row_of(v, r));
    for (std::int64_t j = begin; j < end; j += 16) {
      const __mmask16 mask = first_lanes(end - j);
      const __m512i bits = row.magnitude(j, mask), old = _mm512_castps_si512(_mm512_maskz_loadu_ps(mask, scale + j));
      const __mmask16 finite = _mm512_cmplt_epi32_mask(bits, _mm512_set1_epi32(kInfinity));
      _mm512_mask_storeu_ps(scale + j, mask, _mm512_castsi512_ps(_mm512_mask_max_epi32(old, finite, old, bits)));
    }
  }
  for (std::int64_t j = begin; j < end; ++j) {
    const ScalePair pair = scale_for(scale[j], format, false);
    scale[j] = pair.scale;
    multiplier[j] = pair.multiplier;
  }
}

void find_scales(const MatrixView& v, DType format, float* scale, float* multiplier) {
  parallel_region(v.rows * v.cols < kSerialMacs ? 1 : threads(), [&](int thread, int used) {
    const Range own = partition(v.cols, thread, used, 32);
    if (v.dtype == DType::bf16) {
      find_scales<Bf16Row>(v, own.begin, own.end, format, scale, multiplier);
    } else {
      find_scales<F32Row>(v, own.begin, own.end, format, scale, multiplier);
    }
  });
}

template <class Row, class Grid>
struct RoundedPair {
  const float* multiplier;
  [[gnu::always_inline]] inline __m512 rounded(const char* row, std::int64_t i, __mmask16 mask) const {
    const __m512 v = _mm512_mul_ps(Row(row).load(i, mask), _mm512_maskz_loadu_ps(mask, multiplier + i));
    return _mm512_castsi512_ps(round_to_grid<Grid, false>(v));
  }
  [[gnu::always_inline]] inline __m512i load(const char* row0, const char* row1, std::int64_t i, __mmask16 mask) const {
    const __m512 high = row1 == nullptr ? _mm512_setzero_ps() : rounded(row1, i, mask);
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, rounded(row0, i, mask)));
  }
};

struct RowClass {
  DType grad, x;
  const float *row_scale, *row_multiplier, *column_scale, *column_multiplier;

  template <class F>
  void with_grad_source(F f) const {
    if (grad == DType::bf16) {
      f(RoundedPair<Bf16Row, E5m2Grid>{row_multiplier});
    } else {
      f(RoundedPair<F32Row, E5m2Grid>{row_multiplier});
    }
  }
  template <class F>
  void with_x_source(F f) const {
    if (x == DType::bf16) {
      f(RoundedPair<Bf16Row, E4m3Grid>{column_multiplier});
    } else {
      f(RoundedPair<F32Row, E4m3Grid>{column_multiplier});
    }
  }
};

template <class Strips>
void run_grad_weight_e4m3_row(const GradWeightArgs& args) {
  const std::int64_t n = args.grad.cols, k = args.x.cols;
  float* scales = static_cast<float*>(scratch(5, to_bytes(2 * (n + k)) * sizeof(float)));
  const RowClass kernel{args.grad.dtype, args.x.dtype, scales, scales + n, scales + 2 * n, scales + 2 * n + k};
  find_scales(args.grad, DType::e5m2, scales, scales + n);
  find_scales(args.x, DType::e4m3, scales + 2 * n, scales + 2 * n + k);
  GradWeight<RowClass, Strips>(args, kernel).run();
}

}  // namespace
}  // namespace octavo::avx512_kernels
