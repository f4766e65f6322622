// Largest magnitudes and codes of runs of elements, for every input type and format.
//
// In an anonymous namespace: compiled per instruction set, and the linker must never mix the copies. Includers are
// compiled with -ffp-contract=off: x * multiplier rounds once.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "cpu/generic/quantize_row.hpp"
#include "octavo/float8.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

struct F32 {
  using Storage = float;
  [[gnu::always_inline]] static float load(float x) { return x; }
};
struct Bf16 {
  using Storage = std::uint16_t;
  [[gnu::always_inline]] static float load(std::uint16_t x) { return decode_bf16(x); }
};
struct F16 {
  using Storage = _Float16;
  [[gnu::always_inline]] static float load(_Float16 x) { return static_cast<float>(x); }
};

using Magnitude = RowMagnitude;

template <class In>
Magnitude largest_magnitude(const typename In::Storage* x, std::int64_t n) {
  constexpr std::uint32_t infinity = 0x7f800000u;
  std::uint32_t largest = 0, nan = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(In::load(x[i])) & 0x7fffffffu;
    const std::uint32_t finite = bits < infinity ? bits : 0;
    largest = finite > largest ? finite : largest;
    nan |= static_cast<std::uint32_t>(bits > infinity);
  }
  return {largest, nan != 0};
}

template <class In, class Encode>
void encode_row(const typename In::Storage* x, std::int64_t n, float multiplier, std::uint8_t* out, Encode encode) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = encode(In::load(x[i]) * multiplier);
}

template <class In>
void encode(const typename In::Storage* x, std::int64_t n, DType format, float multiplier, std::uint8_t* out) {
  switch (format) {
    case DType::e4m3: encode_row<In>(x, n, multiplier, out, [](float v) { return encode_e4m3(v); }); break;
    case DType::e5m2: encode_row<In>(x, n, multiplier, out, [](float v) { return encode_e5m2(v); }); break;
    default:
      encode_row<In>(x, n, multiplier, out, [](float v) {
        const float clamped = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v == v ? v : 0.0f;
        constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to nearest even
        return static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(clamped + magic));
      });
  }
}

ScalePair scale_of(Magnitude magnitude, DType format, bool pow2_scale) {
  ScalePair pair = scale_for(std::bit_cast<float>(magnitude.bits), format, pow2_scale);
  if (format == DType::i8 && magnitude.nan) pair.scale = std::numeric_limits<float>::quiet_NaN();
  return pair;
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA_NAMESPACE
