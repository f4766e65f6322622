// One SIMD register of FP32 in GNU vector extensions, as wide as the instruction set this copy is compiled for.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

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
typedef std::uint8_t UnalignedBytes __attribute__((vector_size(kVectorBytes / 4), aligned(1), may_alias));

[[gnu::always_inline]] inline Vec splat(float x) { return x - Vec{}; }

// kLanes codes, each in a lane of its own. g++ 12 widens in halves, bytes one by one, unless told the instruction.
[[gnu::always_inline]] inline Words widen(const std::uint16_t* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<Words>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__AVX2__)
  return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  return __builtin_convertvector(*reinterpret_cast<const UnalignedHalves*>(p), Words);
#endif
}
[[gnu::always_inline]] inline Words widen(const std::uint8_t* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<Words>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return reinterpret_cast<Words>(_mm256_cvtepu8_epi32(_mm_loadu_si64(p)));
#elif defined(__SSE2__)
  std::int32_t codes;
  std::memcpy(&codes, p, sizeof codes);
  const __m128i halves = _mm_unpacklo_epi8(_mm_cvtsi32_si128(codes), _mm_setzero_si128());
  return reinterpret_cast<Words>(_mm_unpacklo_epi16(halves, _mm_setzero_si128()));
#else
  return __builtin_convertvector(*reinterpret_cast<const UnalignedBytes*>(p), Words);
#endif
}

[[gnu::always_inline]] inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
[[gnu::always_inline]] inline Vec load(const std::uint16_t* p) {  // BF16
  return reinterpret_cast<Vec>(widen(p) << 16);
}

[[gnu::always_inline]] inline void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
#if defined(__AVX512BF16__)
[[gnu::always_inline]] inline void store(std::uint16_t* p, Vec v) {  // BF16, nearest even, NaN quieted, no subnormals
  *reinterpret_cast<UnalignedHalves*>(p) = reinterpret_cast<Halves>(_mm512_cvtneps_pbh(v));
}
#else
[[gnu::always_inline]] inline void store(std::uint16_t* p, Vec v) {  // BF16, nearest even, NaN quieted
  const Words bits = reinterpret_cast<Words>(v);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Words nan = (bits >> 16) | 0x40u;
  *reinterpret_cast<UnalignedHalves*>(p) = __builtin_convertvector(v == v ? rounded : nan, Halves);
}
#endif

// a * b + c, rounded once where the instruction set has it. Nothing else is fused: files that include this and whose
// bits must not depend on the compiler's mood are compiled with -ffp-contract=off.
[[gnu::always_inline]] inline Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
[[gnu::always_inline]] inline Vec multiply_add(Vec a, Vec b, float c) { return multiply_add(a, b, splat(c)); }
[[gnu::always_inline]] inline Vec multiply_add(Vec a, float b, float c) { return multiply_add(a, splat(b), splat(c)); }

// b where a < b or either is NaN, else a. One instruction where the compiler sees none in the comparison.
[[gnu::always_inline]] inline Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
[[gnu::always_inline]] inline Vec smaller(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

// The first `count` < kLanes elements; the other lanes are zero and are not read.
#if defined(__AVX512F__)
[[gnu::always_inline]] inline __mmask16 first_lanes(std::int64_t count) {
  return static_cast<__mmask16>((1u << count) - 1);
}
[[gnu::always_inline]] inline Vec load_part(const float* p, std::int64_t count) {
  return _mm512_maskz_loadu_ps(first_lanes(count), p);
}
[[gnu::always_inline]] inline Vec load_part(const std::uint16_t* p, std::int64_t count) {  // BF16
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(count), p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}
[[gnu::always_inline]] inline void store_part(float* p, Vec v, std::int64_t count) {
  _mm512_mask_storeu_ps(p, first_lanes(count), v);
}
[[gnu::always_inline]] inline void store_part(std::uint16_t* p, Vec v, std::int64_t count) {  // BF16
  alignas(32) std::uint16_t part[kLanes];
  store(part, v);
  _mm256_mask_storeu_epi16(p, first_lanes(count), _mm256_load_si256(reinterpret_cast<const __m256i*>(part)));
}
#else
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
#endif

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

// add(sum, v) over v = row[0 .. n): four chains, then pairwise.
template <class T, class Add>
[[gnu::always_inline]] inline float sum(const T* row, std::int64_t n, Add add) {
  Vec s0{}, s1{}, s2{}, s3{};
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    s0 = add(s0, load(row + i));
    s1 = add(s1, load(row + i + kLanes));
    s2 = add(s2, load(row + i + 2 * kLanes));
    s3 = add(s3, load(row + i + 3 * kLanes));
  }
  for (; i + kLanes <= n; i += kLanes) s0 = add(s0, load(row + i));
  if (i < n) s1 += keep_first(add(Vec{}, load_part(row + i, n - i)), n - i);
  return sum_of((s0 + s1) + (s2 + s3));
}

// e^x within 2e-7 relative; 0 below -87.3, +infinity above 88.7; NaN stays.
[[gnu::always_inline]] inline Vec exp(Vec x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec clamped = x > 88.7f ? splat(88.7f) : x < -87.3f ? splat(-87.3f) : x;
  const Vec shifted = multiply_add(clamped, 1.44269504f, kMagic);
  const Vec n = shifted - kMagic;
  const Vec high = multiply_add(n, splat(-0.693359375f), clamped);  // ln 2 in two parts
  const Vec r = multiply_add(n, splat(2.12194440e-4f), high);
  Vec p = multiply_add(r, 1.9875691500e-4f, 1.3981999507e-3f);
  p = multiply_add(p, r, 8.3334519073e-3f);
  p = multiply_add(p, r, 4.1665795894e-2f);
  p = multiply_add(p, r, 1.6666665459e-1f);
  p = multiply_add(p, r, 5.0000001201e-1f);
  p = multiply_add(p * r, r, r) + 1.0f;
  const Words exponent = reinterpret_cast<Words>(shifted) << 23;     // n lies in the low bits of the shifted number
  const Vec power = reinterpret_cast<Vec>(exponent + (126u << 23));  // 2^(n - 1): n may be 128
  const Vec result = p * power * 2.0f;
  return x > 88.7f ? splat(__builtin_inff()) : x < -87.3f ? Vec{} : result;
}

[[gnu::always_inline]] inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

// erfc(z) for z >= 0, relative error below 2e-6 (Chebyshev fit of Numerical Recipes, section 6.2).
[[gnu::always_inline]] inline Vec erfc_positive(Vec z) {
  const Vec t = 1.0f / multiply_add(z, 0.5f, 1.0f);
  Vec p = multiply_add(t, 0.17087277f, -0.82215223f);
  p = multiply_add(p, t, 1.48851587f);
  p = multiply_add(p, t, -1.13520398f);
  p = multiply_add(p, t, 0.27886807f);
  p = multiply_add(p, t, -0.18628806f);
  p = multiply_add(p, t, 0.09678418f);
  p = multiply_add(p, t, 0.37409196f);
  p = multiply_add(p, t, 1.00002368f);
  return t * exp(multiply_add(-z, z, multiply_add(p, t, -1.26551223f)));
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
  return x * smaller(splat(1.0f), larger(Vec{}, multiply_add(x, 1.0f / 6.0f, 0.5f)));
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA_NAMESPACE
