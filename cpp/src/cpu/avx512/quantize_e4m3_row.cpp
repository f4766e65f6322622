// FP32 or BF16 rows -> E4M3 codes with a scale per row. Compiled with -ffp-contract=off.
#include "cpu/avx512/quantize_rows.hpp"

namespace octavo::avx512_kernels {
namespace {

inline __m128i encode16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, 20), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(magnitude, _mm512_set1_epi32(0x7ffff)), odd);
  __m512i code = _mm512_sub_epi32(_mm512_srli_epi32(rounded, 20), _mm512_set1_epi32(120 << 3));
  code = _mm512_min_epi32(code, _mm512_set1_epi32(0x7e));
  const __mmask16 subnormal = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(121 << 23));  // below 2^-6
  const __m512i magic = _mm512_set1_epi32((127 + 23 - 9) << 23);  // adding 2^14 rounds at a spacing of 2^-9
  const __m512 sum = _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_castsi512_ps(magic));
  code = _mm512_mask_sub_epi32(code, subnormal, _mm512_castps_si512(sum), magic);
  const __mmask16 nan = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f800000));
  code = _mm512_mask_mov_epi32(code, nan, _mm512_set1_epi32(0x7f));
  const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80));
  return _mm512_cvtepi32_epi8(_mm512_or_si512(code, sign));
}

}  // namespace

Status quantize_e4m3_row(const QuantizeArgs& args) {
  return quantize_rows_of(args, DType::e4m3, "cpu.avx512.quantize.e4m3_row", [](__m512 x) { return encode16(x); });
}

}  // namespace octavo::avx512_kernels
