// FP32 or BF16 rows -> symmetric INT8 codes with a scale per row. Compiled with -ffp-contract=off.
#include "cpu/avx512/quantize_rows.hpp"

namespace octavo::avx512_kernels {
namespace {

inline __m128i encode16(__m512 x) {
  const __m512 limit = _mm512_set1_ps(127.0f);
  const __mmask16 number = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
  const __m512 clamped = _mm512_max_ps(_mm512_min_ps(x, limit), _mm512_sub_ps(_mm512_setzero_ps(), limit));
  return _mm512_cvtepi32_epi8(_mm512_maskz_cvtps_epi32(number, clamped));  // nearest even; NaN: 0
}

}  // namespace

Status quantize_int8_row(const QuantizeArgs& args) {
  return quantize_rows_of(args, DType::i8, "cpu.avx512.quantize.int8_row", [](__m512 x) { return encode16(x); });
}

}  // namespace octavo::avx512_kernels
