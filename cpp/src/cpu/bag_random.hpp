// Random bits of stochastic rounding, a function of (seed, step, table, row, column) alone: the same whichever thread
// draws them and in whatever order. And what is drawn with them: the scalar codecs that round stochastically. CUDA
// kernels use the same functions, those that are constexpr.
//
// In an anonymous namespace: compiled with several instruction sets, and the linker must never mix the copies.
#pragma once

#include <bit>
#include <cstdint>

#include "octavo/embedding.hpp"
#include "octavo/float8.hpp"

namespace octavo {
namespace {

// Finaliser of splitmix64: every bit of x moves half the bits of the result.
constexpr std::uint64_t mix_bits(std::uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15ull;

inline std::uint64_t random_table(const OptimizerConfig& optimizer, std::int64_t table) {
  const std::uint64_t call = mix_bits(mix_bits(optimizer.seed + kGolden) + static_cast<std::uint64_t>(optimizer.step));
  return mix_bits(call + kGolden * static_cast<std::uint64_t>(optimizer.first_table + table + 1));
}

struct RandomRow {
  std::uint32_t low, high;
};

constexpr RandomRow random_row(std::uint64_t table, std::uint64_t row) {
  const std::uint64_t x = mix_bits(table + kGolden * (row + 1));
  return {static_cast<std::uint32_t>(x), static_cast<std::uint32_t>(x >> 32)};
}

// Multipliers of the 32-bit finaliser "lowbias32".
constexpr std::uint32_t kColumn = 0x9e3779b9u, kMix1 = 0x7feb352du, kMix2 = 0x846ca68bu;

constexpr std::uint32_t random_bits(RandomRow row, std::uint32_t column) {
  std::uint32_t x = column * kColumn ^ row.low;
  x = (x ^ x >> 16) * kMix1;
  x = (x ^ x >> 15) + row.high;
  x = (x ^ x >> 15) * kMix2;
  return x ^ x >> 16;
}

// Uniform in [0, 1), from the upper 24 bits.
constexpr float uniform(std::uint32_t random) { return static_cast<float>(random >> 8) * 0x1p-24f; }

constexpr std::uint16_t encode_bf16_stochastic(float x, std::uint32_t random) {
  const auto bits = std::bit_cast<std::uint32_t>(x), magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | (magnitude > 0x7f800000u ? 0x40 : 0));
  return static_cast<std::uint16_t>((bits + (random & 0xffff)) >> 16);
}

constexpr std::uint16_t encode_f16_stochastic(float x, std::uint32_t random) {
  const auto bits = std::bit_cast<std::uint32_t>(x), magnitude = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
  if (magnitude >= 0x47800000u) return encode_f16(x);  // 2^16 and above: no two codes around it
  if (magnitude >= 113u << 23)
    return static_cast<std::uint16_t>(sign | (((magnitude + (random & 0x1fff)) >> 13) - (112u << 10)));
  const float steps = std::bit_cast<float>(magnitude) * 0x1p24f;  // of the subnormals, 2^-24
  const auto below = static_cast<std::uint32_t>(steps);
  return static_cast<std::uint16_t>(sign | (below + (uniform(random) < steps - static_cast<float>(below))));
}

// |x| at most 448: larger ones saturate.
constexpr std::uint8_t encode_e4m3_stochastic(float x, std::uint32_t random) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  std::uint32_t magnitude = bits & 0x7fffffffu;
  const auto sign = static_cast<std::uint8_t>(bits >> 24 & 0x80);
  if (magnitude > 0x7f800000u) return sign | 0x7f;
  constexpr std::uint32_t largest = 0x43e00000, smallest_normal = 121u << 23;  // 448, 2^-6
  magnitude = magnitude < largest ? magnitude : largest;
  if (magnitude >= smallest_normal)
    return static_cast<std::uint8_t>(sign | (((magnitude + (random & 0xfffff)) >> 20) - (120u << 3)));
  const float steps = std::bit_cast<float>(magnitude) * 512.0f;  // of the subnormals, 2^-9
  const auto below = static_cast<std::uint32_t>(steps);
  return static_cast<std::uint8_t>(sign | (below + (uniform(random) < steps - static_cast<float>(below))));
}

// x in [0, largest].
constexpr std::uint8_t encode_unsigned_stochastic(float x, std::uint32_t largest, std::uint32_t random) {
  const auto below = static_cast<std::uint32_t>(x);
  const std::uint32_t code = below + (uniform(random) < x - static_cast<float>(below));
  return static_cast<std::uint8_t>(code < largest ? code : largest);
}

}  // namespace
}  // namespace octavo
