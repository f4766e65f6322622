// One SIMD register of FP32 in GNU vector extensions, as wide as the instruction set this copy is compiled for.
#pragma once

#include <cstdint>
#include <cstring>

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;

typedef float Vec __attribute__((vector_size(kVectorBytes)));
typedef std::int32_t Ints __attribute__((vector_size(kVectorBytes)));
typedef std::uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef std::uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
typedef float UnalignedVec __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
typedef std::uint16_t UnalignedHalves __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

[[gnu::always_inline]] inline Vec splat(float x) { return x - Vec{}; }

[[gnu::always_inline]] inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
[[gnu::always_inline]] inline Vec load(const std::uint16_t* p) {  // BF16
  const Halves halves = *reinterpret_cast<const UnalignedHalves*>(p);
  return reinterpret_cast<Vec>(__builtin_convertvector(halves, Words) << 16);
}

[[gnu::always_inline]] inline void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
[[gnu::always_inline]] inline void store(std::uint16_t* p, Vec v) {  // BF16, nearest even, NaN quieted
  const Words bits = reinterpret_cast<Words>(v);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Words nan = (bits >> 16) | 0x40u;
  *reinterpret_cast<UnalignedHalves*>(p) = __builtin_convertvector(v == v ? rounded : nan, Halves);
}

// The first `count` < kLanes elements; the other lanes are zero and are not read.
template <class T>
[[gnu::always_inline]] inline Vec load_part(const T* p, std::int64_t count) {
  alignas(kVectorBytes) T part[kLanes] = {};
  std::memcpy(part, p, static_cast<std::size_t>(count) * sizeof(T));
  return load(part);
}

template <class T>
[[gnu::always_inline]] inline void store_part(T* p, Vec v, std::int64_t count) {
  alignas(kVectorBytes) T part[kLanes];
  store(part, v);
  std::memcpy(p, part, static_cast<std::size_t>(count) * sizeof(T));
}

// Zero in the lanes from `count` on.
[[gnu::always_inline]] inline Vec keep_first(Vec v, std::int64_t count) {
  Ints lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane < static_cast<std::int32_t>(count) ? v : Vec{};
}

typedef float Four __attribute__((vector_size(16)));
typedef float Eight __attribute__((vector_size(32)));
typedef float Sixteen __attribute__((vector_size(64)));

// Halves onto each other, so the order does not depend on the compiler.
[[gnu::always_inline]] inline float sum_of(const Four& v) {
  const Four two = v + __builtin_shufflevector(v, v, 2, 3, 0, 1);
  return two[0] + two[1];
}
[[gnu::always_inline]] inline float sum_of(const Eight& v) {
  return sum_of(__builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7));
}
[[gnu::always_inline]] inline float sum_of(const Sixteen& v) {
  return sum_of(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}

// sum of f(v) over v = row[0 .. n): four chains, then pairwise.
template <class T, class F>
[[gnu::always_inline]] inline float sum(const T* row, std::int64_t n, F f) {
  Vec s0{}, s1{}, s2{}, s3{};
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    s0 += f(load(row + i));
    s1 += f(load(row + i + kLanes));
    s2 += f(load(row + i + 2 * kLanes));
    s3 += f(load(row + i + 3 * kLanes));
  }
  for (; i + kLanes <= n; i += kLanes) s0 += f(load(row + i));
  if (i < n) s1 += keep_first(f(load_part(row + i, n - i)), n - i);
  return sum_of((s0 + s1) + (s2 + s3));
}

// e^x within 2e-7 relative; 0 below -87.3, +infinity above 88.7; NaN stays.
[[gnu::always_inline]] inline Vec exp(Vec x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec clamped = x > 88.7f ? splat(88.7f) : x < -87.3f ? splat(-87.3f) : x;
  const Vec shifted = clamped * 1.44269504f + kMagic;
  const Vec n = shifted - kMagic;
  const Vec r = clamped - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
  Vec p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Words exponent = reinterpret_cast<Words>(shifted) << 23;     // n lies in the low bits of the shifted number
  const Vec power = reinterpret_cast<Vec>(exponent + (126u << 23));  // 2^(n - 1): n may be 128
  const Vec result = p * power * 2.0f;
  return x > 88.7f ? splat(__builtin_inff()) : x < -87.3f ? Vec{} : result;
}

[[gnu::always_inline]] inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

// erfc(z) for z >= 0, relative error below 2e-6 (Chebyshev fit of Numerical Recipes, section 6.2).
[[gnu::always_inline]] inline Vec erfc_positive(Vec z) {
  const Vec t = 1.0f / (1.0f + 0.5f * z);
  Vec p = 0.17087277f * t - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  return t * exp(p * t - 1.26551223f - z * z);
}

// x Phi(x) with the exact Phi; the left tail keeps its relative accuracy.
[[gnu::always_inline]] inline Vec gelu(Vec x) {
  const Vec z = (x < 0.0f ? -x : x) * 0.70710678f;
  const Vec tail = 0.5f * erfc_positive(z);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

// Its derivative: Phi(x) + x phi(x).
[[gnu::always_inline]] inline Vec gelu_slope(Vec x) {
  const Vec z = (x < 0.0f ? -x : x) * 0.70710678f;
  const Vec tail = 0.5f * erfc_positive(z);
  return (x < 0.0f ? tail : 1.0f - tail) + x * exp(-z * z) * 0.39894228f;
}

[[gnu::always_inline]] inline Vec hardswish(Vec x) {
  const Vec shifted = x + 3.0f;
  const Vec low = shifted < 0.0f ? Vec{} : shifted;
  return x * (low > 6.0f ? splat(6.0f) : low) * (1.0f / 6.0f);
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA_NAMESPACE
