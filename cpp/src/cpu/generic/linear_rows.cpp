// Compiled with -ffp-contract=off: x * multiplier rounds once.
#include "cpu/generic/linear_rows.hpp"

#include <bit>

#include "octavo/float8.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

[[gnu::always_inline]] inline float as_float(float x) { return x; }
[[gnu::always_inline]] inline float as_float(std::uint16_t x) { return decode_bf16(x); }
[[gnu::always_inline]] inline float as_float(std::uint8_t x) { return decode_e4m3(x); }
[[gnu::always_inline]] inline float as_float(std::int8_t x) { return static_cast<float>(x); }

template <class T>
ScalePair scale_of(const T* row, std::int64_t k, DType format) {
  constexpr std::uint32_t infinity = 0x7f800000u;
  std::uint32_t largest = 0, nan = 0;
  for (std::int64_t i = 0; i < k; ++i) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(as_float(row[i])) & 0x7fffffffu;
    const std::uint32_t finite = bits < infinity ? bits : 0;
    largest = finite > largest ? finite : largest;
    nan |= static_cast<std::uint32_t>(bits > infinity);
  }
  ScalePair pair = scale_for(std::bit_cast<float>(largest), format, false);
  if (format == DType::i8 && nan != 0) pair.scale = std::numeric_limits<float>::quiet_NaN();
  return pair;
}

[[gnu::always_inline]] inline float round_to_bf16(float v) { return decode_bf16(encode_bf16(v)); }
[[gnu::always_inline]] inline float round_to_e4m3(float v) { return decode_e4m3(encode_e4m3(v)); }
[[gnu::always_inline]] inline float round_to_int8(float v) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to nearest even
  const float clamped = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v == v ? v : 0.0f;
  return (clamped + magic) - magic;
}

template <class T, class Round>
void round_row(const T* x, std::int64_t n, float multiplier, Round round, float* out, std::int64_t step) {
  constexpr std::int64_t kChunk = 128;
  float values[kChunk];  // contiguous first: strided stores would keep the rounding scalar
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t count = n - begin < kChunk ? n - begin : kChunk;
    for (std::int64_t i = 0; i < count; ++i) values[i] = round(as_float(x[begin + i]) * multiplier);
    for (std::int64_t i = 0; i < count; ++i) out[(begin + i) * step] = values[i];
  }
}

template <class T>
void round_all(const MatrixView& x, std::int64_t first, std::int64_t count, std::int64_t begin, std::int64_t end,
               const float* multiplier, Numerics numerics, float* out) {
  for (std::int64_t r = 0; r < count; ++r) {
    const T* row = static_cast<const T*>(x.data) + (first + r) * x.row_stride + begin;
    const std::int64_t n = end - begin;
    switch (numerics) {
      case Numerics::e4m3_row:
      case Numerics::e4m3_block:
        round_row(row, n, multiplier[r], [](float v) { return round_to_e4m3(v); }, out + r, count);
        break;
      case Numerics::int8_dynamic:
        round_row(row, n, multiplier[r], [](float v) { return round_to_int8(v); }, out + r, count);
        break;
      default: round_row(row, n, 1.0f, [](float v) { return round_to_bf16(v); }, out + r, count);
    }
  }
}

// Codes are numbers of the class already.
template <class Code>
void copy_all(const MatrixView& x, std::int64_t first, std::int64_t count, std::int64_t begin, std::int64_t end,
              float* out) {
  for (std::int64_t r = 0; r < count; ++r) {
    const Code* row = static_cast<const Code*>(x.data) + (first + r) * x.row_stride + begin;
    round_row(row, end - begin, 1.0f, [](float v) { return v; }, out + r, count);
  }
}

}  // namespace

ScalePair activation_scale(const void* row, std::int64_t k, DType dtype, Numerics numerics) {
  if (numerics != Numerics::e4m3_row && numerics != Numerics::e4m3_block && numerics != Numerics::int8_dynamic)
    return {1.0f, 1.0f};
  const DType format = weight_format(numerics);
  return dtype == DType::bf16 ? scale_of(static_cast<const std::uint16_t*>(row), k, format)
                              : scale_of(static_cast<const float*>(row), k, format);
}

void round_rows(const MatrixView& x, std::int64_t first, std::int64_t count, std::int64_t begin, std::int64_t end,
                const float* multiplier, Numerics numerics, float* out) {
  if (x.dtype == DType::bf16) {
    round_all<std::uint16_t>(x, first, count, begin, end, multiplier, numerics, out);
  } else if (x.dtype == DType::f32) {
    round_all<float>(x, first, count, begin, end, multiplier, numerics, out);
  } else if (x.dtype == DType::e4m3) {
    copy_all<std::uint8_t>(x, first, count, begin, end, out);
  } else {
    copy_all<std::int8_t>(x, first, count, begin, end, out);
  }
}

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
