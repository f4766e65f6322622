// The scalar eight-bit and BF16 codecs: the definition every vector kernel is tested against.
//
// E4M3FN: bias 7, max 448, min normal 2^-6, min subnormal 2^-9, NaN = 0x7F/0xFF, no infinity.
// E5M2: IEEE-like, bias 15, max 57344, infinities and NaNs.
// Always inlined: these are compiled with several instruction sets, and the linker must never mix the copies.
// constexpr: CUDA kernels call them too. Encoding rounds to nearest even and saturates: +-infinity and everything
// beyond the largest finite value become it.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace octavo {

inline constexpr float kE4M3Max = 448.0f;
inline constexpr float kE5M2Max = 57344.0f;

namespace detail {

// Rounds |x| to `mantissa_bits` bits with exponents from `min_exponent` up; returns the code without its sign.
template <int mantissa_bits, int bias>
[[gnu::always_inline]] constexpr std::uint8_t encode_magnitude(std::uint32_t magnitude, std::uint32_t max_code) {
  constexpr int shift = 23 - mantissa_bits;
  constexpr std::uint32_t min_normal = static_cast<std::uint32_t>(127 - bias + 1) << 23;
  if (magnitude < min_normal) {  // subnormal: the FP32 adder rounds at the spacing of 2^(1 - bias - mantissa_bits)
    constexpr std::uint32_t magic_bits = static_cast<std::uint32_t>(127 + 23 + 1 - bias - mantissa_bits) << 23;
    const float magic = std::bit_cast<float>(magic_bits);
    return static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + magic) -
                                     magic_bits);
  }
  const std::uint32_t odd = (magnitude >> shift) & 1;
  const std::uint32_t rounded = magnitude + ((1u << (shift - 1)) - 1) + odd;
  const std::uint32_t code = (rounded >> shift) - (static_cast<std::uint32_t>(127 - bias) << mantissa_bits);
  return static_cast<std::uint8_t>(code < max_code ? code : max_code);
}

}  // namespace detail

[[gnu::always_inline]] constexpr std::uint8_t encode_e4m3(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint8_t sign = static_cast<std::uint8_t>((bits >> 24) & 0x80);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7f;
  return sign | detail::encode_magnitude<3, 7>(magnitude, 0x7e);
}

[[gnu::always_inline]] constexpr std::uint8_t encode_e5m2(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint8_t sign = static_cast<std::uint8_t>((bits >> 24) & 0x80);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7f;
  return sign | detail::encode_magnitude<2, 15>(magnitude, 0x7b);
}

[[gnu::always_inline]] constexpr float decode_e4m3(std::uint8_t code) {
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  const float sign = code & 0x80 ? -1.0f : 1.0f;
  if ((code & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  if (exponent == 0) return sign * static_cast<float>(mantissa) * 0x1p-9f;
  return sign * std::bit_cast<float>(static_cast<std::uint32_t>(exponent + 120) << 23 |
                                     static_cast<std::uint32_t>(mantissa) << 20);
}

[[gnu::always_inline]] constexpr float decode_e5m2(std::uint8_t code) {
  const int exponent = (code >> 2) & 31, mantissa = code & 3;
  const float sign = code & 0x80 ? -1.0f : 1.0f;
  if (exponent == 31)
    return sign * (mantissa ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity());
  if (exponent == 0) return sign * static_cast<float>(mantissa) * 0x1p-16f;
  return sign * std::bit_cast<float>(static_cast<std::uint32_t>(exponent + 112) << 23 |
                                     static_cast<std::uint32_t>(mantissa) << 21);
}

[[gnu::always_inline]] constexpr float decode_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// The scale 2^(code - 127) of the MX formats; 255 is NaN.
[[gnu::always_inline]] constexpr float decode_e8m0(std::uint8_t code) {
  const std::uint32_t odd = code == 0 || code == 255 ? 0x400000u : 0u;  // 2^-127 is subnormal
  return std::bit_cast<float>(static_cast<std::uint32_t>(code) << 23 | odd);
}

// Immune to the flushing of FP32 subnormals.
[[gnu::always_inline]] constexpr float decode_f16(std::uint16_t bits) {
  const std::uint32_t magnitude = bits & 0x7fffu, sign = (bits & 0x8000u) << 16;
  const float subnormal = static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f;
  const std::uint32_t rebias = magnitude < 0x7c00u ? 112u << 23 : 224u << 23;  // infinity and NaN keep all ones
  const std::uint32_t value = magnitude < 0x400u ? std::bit_cast<std::uint32_t>(subnormal) : (magnitude << 13) + rebias;
  return std::bit_cast<float>(value | sign);
}

// Larger than the largest, 65504, by half a step or more: infinity.
[[gnu::always_inline]] constexpr std::uint16_t encode_f16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x), magnitude = bits & 0x7fffffffu;
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  std::uint32_t code = 0;
  if (magnitude > 0x7f800000u)
    code = 0x7e00u | (magnitude >> 13 & 0x3ffu);  // quiet the NaN
  else if (magnitude >= 0x47800000u)              // 2^16
    code = 0x7c00u;
  else if (magnitude >= 113u << 23)  // 2^-14
    code = ((magnitude + 0xfffu + (magnitude >> 13 & 1)) >> 13) - (112u << 10);
  else  // in steps of 2^-24; the adder rounds
    code = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p24f + 0x1p23f) - 0x4b000000u;
  return static_cast<std::uint16_t>(sign | code);
}

[[gnu::always_inline]] constexpr std::uint16_t encode_bf16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40);  // quiet the NaN
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

}  // namespace octavo
