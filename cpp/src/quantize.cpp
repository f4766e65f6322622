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

MxScale mx_scale_for(float amax, DType format) {
  if (!(amax > 0.0f)) return {127, 1.0f};
  const int exponent = std::ilogb(amax) - (format == DType::e4m3 ? 8 : 15);
  const int kept = exponent < -127 ? -127 : exponent;
  return {static_cast<std::uint8_t>(kept + 127), std::ldexp(1.0f, -kept)};
}

Status validate(const QuantizeArgs& args) {
  if (args.format != DType::e4m3 && args.format != DType::e5m2 && args.format != DType::i8)
    return Status::invalid("quantize: format must be e4m3, e5m2 or int8");
  if (args.x.dtype != DType::f32 && args.x.dtype != DType::bf16 && args.x.dtype != DType::f16)
    return Status::invalid("quantize: x must be float32, bfloat16 or float16");
  if (args.scaling == Scaling::mx && args.format == DType::i8)
    return Status::invalid("quantize: mx scaling has e4m3 and e5m2 elements only");
  return {};
}

Status dequantize(const DequantizeArgs& args) {
  if (args.out.dtype != DType::f32 && args.out.dtype != DType::bf16)
    return Status::invalid("dequantize: dtype must be float32 or bfloat16");
  float table[256];
  for (int code = 0; code < 256; ++code) table[code] = decode(static_cast<std::uint8_t>(code), args.format);
  const std::int64_t rows = args.out.rows, cols = args.out.cols;
  const ScaleTile tile = tile_of(args.scaling);
  const std::int64_t width = tile.cols == 0 ? cols : tile.cols;
  const std::int64_t per_row = tile.cols == 0 ? 1 : (cols + width - 1) / width;
  const auto scale_at = [&](std::int64_t at) {
    if (args.scaling != Scaling::mx) return args.scale[at];
    const int e8m0 = args.scale_e8m0[at];
    return e8m0 == 255 ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, e8m0 - 127);
  };
  const int count = rows * cols < 65536 ? 1 : threads();
  parallel_region(count, [&](int thread, int n) {
    const auto [begin, end] = partition(rows, thread, n);
    for (std::int64_t r = begin; r < end; ++r) {
      const auto* codes = static_cast<const std::uint8_t*>(args.codes) + r * cols;
      const std::int64_t first = tile.rows == 0 ? 0 : r / tile.rows * per_row;
      for (std::int64_t from = 0; from < cols; from += width) {
        const float scale = scale_at(first + from / width);
        const std::int64_t to = cols - from < width ? cols : from + width;
        if (args.out.dtype == DType::f32) {
          auto* out = static_cast<float*>(args.out.data) + r * args.out.row_stride;
          for (std::int64_t c = from; c < to; ++c) out[c] = table[codes[c]] * scale;
        } else {
          auto* out = static_cast<std::uint16_t*>(args.out.data) + r * args.out.row_stride;
          for (std::int64_t c = from; c < to; ++c) out[c] = encode_bf16(table[codes[c]] * scale);
        }
      }
    }
  });
  return {};
}

}  // namespace octavo
