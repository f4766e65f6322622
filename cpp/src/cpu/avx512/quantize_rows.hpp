// What the row quantizers share: FP32 or BF16 rows, read twice, once for the largest magnitude and then from L1.
//
// In an anonymous namespace: every includer has its own copy. Includers are compiled with -ffp-contract=off.
#pragma once

#include <immintrin.h>

#include <bit>
#include <limits>

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

struct Magnitude {
  float largest;  // of the finite elements
  bool nan;       // is there one
};

template <class In>
Magnitude magnitude_of(const typename In::Storage* x, std::int64_t n) {
  const __m512i magnitude_mask = _mm512_set1_epi32(0x7fffffff), infinity = _mm512_set1_epi32(0x7f800000);
  __m512i largest0 = _mm512_setzero_si512(), largest1 = largest0, widest = largest0;
  const auto step = [&](__m512i largest, std::int64_t i, __mmask16 mask) {
    const __m512i bits = _mm512_and_si512(_mm512_castps_si512(In::load(x + i, mask)), magnitude_mask);
    widest = _mm512_max_epi32(widest, bits);
    return _mm512_mask_max_epi32(largest, _mm512_cmplt_epi32_mask(bits, infinity), largest, bits);
  };
  std::int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    largest0 = step(largest0, i, 0xffff);
    largest1 = step(largest1, i + 16, 0xffff);
  }
  for (; i < n; i += 16) largest0 = step(largest0, i, tail_mask(n - i));
  const int bits = _mm512_reduce_max_epi32(_mm512_max_epi32(largest0, largest1));
  return {std::bit_cast<float>(bits), _mm512_reduce_max_epi32(widest) > 0x7f800000};
}

// encode: 16 scaled elements to 16 codes.
template <class In, class Encode>
void encode_row(const typename In::Storage* x, std::int64_t n, float multiplier, std::uint8_t* out, Encode encode) {
  const __m512 m = _mm512_set1_ps(multiplier);
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), encode(_mm512_mul_ps(In::load(x + i, 0xffff), m)));
  if (i < n) {
    const __mmask16 mask = tail_mask(n - i);
    _mm_mask_storeu_epi8(out + i, mask, encode(_mm512_mul_ps(In::load(x + i, mask), m)));
  }
}

template <class In, class Encode>
void quantize_rows(const QuantizeArgs& args, Encode encode) {
  const auto* x = static_cast<const typename In::Storage*>(args.x.data);
  auto* codes = static_cast<std::uint8_t*>(args.codes);
  const std::int64_t rows = args.x.rows, cols = args.x.cols;
  const int count = rows * cols < 65536 ? 1 : threads();
  parallel_region(count, [&](int thread, int n) {
    const auto [begin, end] = partition(rows, thread, n);
    for (std::int64_t r = begin; r < end; ++r) {
      const auto* row = x + r * args.x.row_stride;
      const Magnitude magnitude = magnitude_of<In>(row, cols);
      const ScalePair pair = scale_for(magnitude.largest, args.format, args.pow2_scale);
      const bool lost = args.format == DType::i8 && magnitude.nan;  // INT8 has no code for NaN
      args.scale[r] = lost ? std::numeric_limits<float>::quiet_NaN() : pair.scale;
      encode_row<In>(row, cols, pair.multiplier, codes + r * cols, encode);
    }
  });
}

// The one format and scaling a kernel serves, for FP32 and BF16 input.
template <class Encode>
Status quantize_rows_of(const QuantizeArgs& args, DType format, const char* name, Encode encode) {
  if (args.format != format || args.scaling != Scaling::row)
    return Status::unsupported(std::string(name) + ": serves one format with row scaling only");
  if (args.x.dtype != DType::f32 && args.x.dtype != DType::bf16)
    return Status::unsupported(std::string(name) + ": x must be float32 or bfloat16");
  args.x.dtype == DType::f32 ? quantize_rows<F32>(args, encode) : quantize_rows<Bf16>(args, encode);
  return {};
}

}  // namespace
}  // namespace octavo::avx512_kernels
