// FP32 or BF16 rows -> E4M3 codes with a scale per row. Each row is read twice: once for its largest magnitude, then
// from L1. Compiled with -ffp-contract=off.
#include <immintrin.h>

#include "octavo/float8.hpp"
#include "octavo/quantize.hpp"
#include "octavo/threading.hpp"

namespace octavo::avx512_kernels {
namespace {

struct F32 {
  using Storage = float;
  static __m512 load(const float* x, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, x); }
};
struct Bf16 {
  using Storage = std::uint16_t;
  static __m512 load(const std::uint16_t* x, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x)), 16));
  }
};

inline __mmask16 tail_mask(std::int64_t left) { return left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1); }

template <class In>
float largest_finite(const typename In::Storage* x, std::int64_t n) {
  const __m512i magnitude_mask = _mm512_set1_epi32(0x7fffffff), infinity = _mm512_set1_epi32(0x7f800000);
  __m512i largest0 = _mm512_setzero_si512(), largest1 = largest0;
  const auto step = [&](__m512i largest, std::int64_t i, __mmask16 mask) {
    const __m512i bits = _mm512_and_si512(_mm512_castps_si512(In::load(x + i, mask)), magnitude_mask);
    return _mm512_mask_max_epi32(largest, _mm512_cmplt_epi32_mask(bits, infinity), largest, bits);
  };
  std::int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    largest0 = step(largest0, i, 0xffff);
    largest1 = step(largest1, i + 16, 0xffff);
  }
  for (; i < n; i += 16) largest0 = step(largest0, i, tail_mask(n - i));
  const int bits = _mm512_reduce_max_epi32(_mm512_max_epi32(largest0, largest1));
  return std::bit_cast<float>(bits);
}

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

template <class In>
void encode_row(const typename In::Storage* x, std::int64_t n, float multiplier, std::uint8_t* out) {
  const __m512 m = _mm512_set1_ps(multiplier);
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), encode16(_mm512_mul_ps(In::load(x + i, 0xffff), m)));
  if (i < n) {
    const __mmask16 mask = tail_mask(n - i);
    _mm_mask_storeu_epi8(out + i, mask, encode16(_mm512_mul_ps(In::load(x + i, mask), m)));
  }
}

template <class In>
void quantize_rows(const QuantizeArgs& args) {
  const auto* x = static_cast<const typename In::Storage*>(args.x.data);
  auto* codes = static_cast<std::uint8_t*>(args.codes);
  const std::int64_t rows = args.x.rows, cols = args.x.cols;
  const int count = rows * cols < 65536 ? 1 : threads();
  parallel_region(count, [&](int thread, int n) {
    const auto [begin, end] = partition(rows, thread, n);
    for (std::int64_t r = begin; r < end; ++r) {
      const auto* row = x + r * args.x.row_stride;
      const ScalePair pair = scale_for(largest_finite<In>(row, cols), DType::e4m3, args.pow2_scale);
      args.scale[r] = pair.scale;
      encode_row<In>(row, cols, pair.multiplier, codes + r * cols);
    }
  });
}

}  // namespace

Status quantize_e4m3_row(const QuantizeArgs& args) {
  if (args.format != DType::e4m3 || args.scaling != Scaling::row)
    return Status::unsupported("cpu.avx512.quantize.e4m3_row: only e4m3 with row scaling");
  if (args.x.dtype == DType::f32) {
    quantize_rows<F32>(args);
  } else if (args.x.dtype == DType::bf16) {
    quantize_rows<Bf16>(args);
  } else {
    return Status::unsupported("cpu.avx512.quantize.e4m3_row: x must be float32 or bfloat16");
  }
  return {};
}

}  // namespace octavo::avx512_kernels
