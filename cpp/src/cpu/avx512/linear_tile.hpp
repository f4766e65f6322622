// The register tile of the hand-written linear kernels: R rows x V * 16 columns of FP32 or INT32 sums.
//
// Weights lie in panels of 64 columns, K-group-major: a group is the K elements one dot instruction consumes (2 BF16 or
// 4 INT8, 32 bits) and 256 bytes hold the group of all 64 columns. The dot instruction is inline asm: from intrinsics
// g++ 12 copies every accumulator each step.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace octavo::avx512_kernels {
namespace {

constexpr std::int64_t kPanel = 64;
constexpr std::int64_t kGroupBytes = 256;

typedef std::int32_t UnalignedGroup __attribute__((aligned(1), may_alias));

inline __mmask16 first_lanes(std::int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// One pass over K of one panel and up to eight rows.
struct Tile {
  const char* a;  // rounded activations, `a_stride` bytes between rows, 4 bytes a group
  std::int64_t a_stride;
  const char* weights;  // the panel, from this pass's first group on
  std::int64_t groups;
  float* c;  // sums of earlier passes in (unless `first`), results out (when `last`: scaled, FP32)
  std::int64_t c_stride;
  bool first, last;
  const float* row_scale;     // [rows]
  const float* column_scale;  // of the panel's first column; null: 1
  const float* bias;          // of the panel's first column; null: 0
  std::int64_t columns;       // of the panel that exist, 1..64
  const std::int32_t* start;  // INT8: first value of each column's sum [64]
};

// BF16 pairs. Denormals count as zero (DAZ); decoded E4M3 codes are normal BF16 numbers, so they are exact.
struct Bf16Dot {
  using Sum = __m512;
  static Sum start(const Tile&, int) { return _mm512_setzero_ps(); }
  static Sum load(const float* c) { return _mm512_loadu_ps(c); }
  static void store(float* c, Sum sum) { _mm512_storeu_ps(c, sum); }
  static __m512 number(Sum sum) { return sum; }
  [[gnu::always_inline]] static inline void add(Sum& sum, __m512i a, __m512i w) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(w));
  }
};

// Four unsigned activations times four signed weights.
struct Int8Dot {
  using Sum = __m512i;
  static Sum start(const Tile& t, int column) { return _mm512_loadu_si512(t.start + column); }
  static Sum load(const float* c) { return _mm512_loadu_si512(c); }
  static void store(float* c, Sum sum) { _mm512_storeu_si512(c, sum); }
  static __m512 number(Sum sum) { return _mm512_cvtepi32_ps(sum); }
  [[gnu::always_inline]] static inline void add(Sum& sum, __m512i a, __m512i w) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(w));
  }
};

// Weights as the dot instruction takes them.
struct PlainWeights {
  static constexpr std::int64_t kStep = kGroupBytes;
  template <int V>
  [[gnu::always_inline]] inline void load(const char* w, __m512i (&out)[V]) const {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) out[v] = _mm512_loadu_si512(w + v * 64);
  }
};

// `column` is where in the panel the tile starts: 0, or 32 for the right half.
template <class Dot, class Weights, int R, int V>
[[gnu::noinline]] void multiply_tile(const Tile& t, int column, const Weights& source) {
  typename Dot::Sum sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      sums[r][v] = t.first ? Dot::start(t, column + v * 16) : Dot::load(t.c + r * t.c_stride + column + v * 16);
  const char* weights = t.weights + column * Weights::kStep / kPanel;
  const char* a[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) a[r] = t.a + r * t.a_stride;
  for (std::int64_t g = 0; g < t.groups; ++g) {
    __m512i w[V];
    source.load(weights, w);
    weights += Weights::kStep;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i x = _mm512_set1_epi32(*reinterpret_cast<const UnalignedGroup*>(a[r] + g * 4));
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) Dot::add(sums[r][v], x, w[v]);
    }
  }
  if (!t.last) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) Dot::store(t.c + r * t.c_stride + column + v * 16, sums[r][v]);
    return;
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const int at = column + v * 16;
    const __mmask16 mask = first_lanes(t.columns - at);
    const __m512 bias = t.bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, t.bias + at);
    const __m512 scale =
        t.column_scale == nullptr ? _mm512_set1_ps(1.0f) : _mm512_maskz_loadu_ps(mask, t.column_scale + at);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512 both = _mm512_mul_ps(_mm512_set1_ps(t.row_scale[r]), scale);
      _mm512_storeu_ps(t.c + r * t.c_stride + at, _mm512_fmadd_ps(Dot::number(sums[r][v]), both, bias));
    }
  }
}

// All `rows` rows of the block: 6 x 64 tiles, or 8 x 32 ones where they leave no tail and a 6 would.
template <class Dot>
void multiply_rows(Tile t, std::int64_t rows) {
  constexpr PlainWeights plain;
  const auto advance = [&t](int height) {
    t.a += height * t.a_stride;
    t.c += height * t.c_stride;
    t.row_scale += height;
  };
  if (rows % 8 == 0 && rows % 6 != 0 && rows <= 64) {
    for (; rows > 0; rows -= 8, advance(8)) {
      multiply_tile<Dot, PlainWeights, 8, 2>(t, 0, plain);
      if (t.columns > 32) multiply_tile<Dot, PlainWeights, 8, 2>(t, 32, plain);
    }
    return;
  }
  for (; rows >= 6; rows -= 6, advance(6)) multiply_tile<Dot, PlainWeights, 6, 4>(t, 0, plain);
  switch (rows) {
    case 1: multiply_tile<Dot, PlainWeights, 1, 4>(t, 0, plain); break;
    case 2: multiply_tile<Dot, PlainWeights, 2, 4>(t, 0, plain); break;
    case 3: multiply_tile<Dot, PlainWeights, 3, 4>(t, 0, plain); break;
    case 4: multiply_tile<Dot, PlainWeights, 4, 4>(t, 0, plain); break;
    case 5: multiply_tile<Dot, PlainWeights, 5, 4>(t, 0, plain); break;
    default: break;
  }
}

}  // namespace
}  // namespace octavo::avx512_kernels
