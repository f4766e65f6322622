// The one definition of scales, and decoding codes back to numbers.
#include "octavo/quantize.hpp"

#include <cmath>
#include <limits>

#include "octavo/float8.hpp"
#include "octavo/threading.hpp"

namespace octavo {
namespace {

float largest(DType format) { return format == DType::e4m3 ? kE4M3Max : format == DType::e5m2 ? kE5M2Max : 127.0f; }

float round_up_to_power_of_two(float x) {
  int exponent;
  const float mantissa = std::frexp(x, &exponent);  // x = mantissa * 2^exponent, mantissa in [0.5, 1)
  return std::ldexp(1.0f, mantissa == 0.5f ? exponent - 1 : exponent);
}

float decode(std::uint8_t code, DType format) {
  if (format == DType::e4m3) return decode_e4m3(code);
  if (format == DType::e5m2) return decode_e5m2(code);
  return static_cast<float>(static_cast<std::int8_t>(code));
}

}  // namespace

ScalePair scale_for(float amax, DType format, bool pow2_scale) {
  if (!(amax > 0.0f)) return {1.0f, 1.0f};
  // Rows so small that the scale or the multiplier would leave FP32's normal range share the smallest usable scale.
  constexpr float kSmallestScale = 0x1p-126f;
  const float top = largest(format);
  float scale = amax / top;
  if (pow2_scale) {
    scale = round_up_to_power_of_two(scale < kSmallestScale ? kSmallestScale : scale);
    return {scale, 1.0f / scale};
  }
  if (scale < kSmallestScale) return {kSmallestScale, 1.0f / kSmallestScale};
  return {scale, top / amax};
}

Status validate(const QuantizeArgs& args) {
  if (args.format != DType::e4m3 && args.format != DType::e5m2 && args.format != DType::i8)
    return Status::invalid("quantize: format must be e4m3, e5m2 or int8");
  if (args.x.dtype != DType::f32 && args.x.dtype != DType::bf16 && args.x.dtype != DType::f16)
    return Status::invalid("quantize: x must be float32, bfloat16 or float16");
  return {};
}

Status dequantize(const DequantizeArgs& args) {
  if (args.out.dtype != DType::f32 && args.out.dtype != DType::bf16)
    return Status::invalid("dequantize: dtype must be float32 or bfloat16");
  float table[256];
  for (int code = 0; code < 256; ++code) table[code] = decode(static_cast<std::uint8_t>(code), args.format);
  const std::int64_t rows = args.out.rows, cols = args.out.cols;
  const int count = rows * cols < 65536 ? 1 : threads();
  parallel_region(count, [&](int thread, int n) {
    const auto [begin, end] = partition(rows, thread, n);
    for (std::int64_t r = begin; r < end; ++r) {
      const auto* codes = static_cast<const std::uint8_t*>(args.codes) + r * cols;
      const float scale = args.scale[args.scaling == Scaling::row ? r : 0];
      if (args.out.dtype == DType::f32) {
        auto* out = static_cast<float*>(args.out.data) + r * args.out.row_stride;
        for (std::int64_t c = 0; c < cols; ++c) out[c] = table[codes[c]] * scale;
      } else {
        auto* out = static_cast<std::uint16_t*>(args.out.data) + r * args.out.row_stride;
        for (std::int64_t c = 0; c < cols; ++c) out[c] = encode_bf16(table[codes[c]] * scale);
      }
    }
  });
  return {};
}

}  // namespace octavo
