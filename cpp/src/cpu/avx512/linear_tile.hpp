// The register tile of the hand-written linear kernels: R rows x V * 16 columns of FP32 or INT32 sums.
//
// Weights lie in panels of 64 columns, K-group-major: a group is the K elements one dot instruction consumes (2 BF16 or
// 4 INT8, 32 bits) and 256 bytes hold the group of all 64 columns. The dot instruction is inline asm: from intrinsics
// g++ 12 copies every accumulator each step.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/linear_driver.hpp"

namespace octavo::avx512_kernels {
namespace {

constexpr std::int64_t kPanel = 64;
constexpr std::int64_t kGroupBytes = 256;

typedef std::int32_t UnalignedGroup __attribute__((aligned(1), may_alias));

inline __mmask16 first_lanes(std::int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// What this pass will want next: the next panel's part of it.
inline void fetch_next(Tile& t, std::int64_t panel_bytes, std::int64_t pass_bytes) {
  t.ahead = t.weights + (t.more_panels ? panel_bytes : 0);
  t.ahead_end = t.ahead + (t.more_panels ? pass_bytes : 0);
}

// How a tile brings weights into L2 while it multiplies: each step a line of the next panel, where the panel's other
// tiles bring the rest; its own stream some steps ahead; or not, where so few rows wait for memory all the time and the
// hardware's own prefetching does as well.
enum class Fetch { none, stream, panel };
constexpr std::int64_t kStreamAhead = 4096;  // bytes

// BF16 pairs. Denormals count as zero (DAZ); decoded E4M3 codes are normal BF16 numbers, so they are exact.
struct Bf16Dot {
  static constexpr std::int64_t kBlockRows = 96;
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
  static constexpr std::int64_t kBlockRows = 24;
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
  static constexpr std::int64_t kStep = kGroupBytes;  // bytes of a group of 64 columns
  static constexpr int kVectors = 1;                  // of 16 columns that come at once
  template <int V>
  [[gnu::always_inline]] inline void load(const char* w, __m512i (&out)[V]) const {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) out[v] = _mm512_loadu_si512(w + v * 64);
  }
};

// `column` is where in the panel the tile starts: 0, or 32 for the right half.
template <class Dot, class Weights, int R, int V, Fetch fetch>
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
  const char* ahead = t.ahead < t.ahead_end ? t.ahead : weights;
  for (std::int64_t g = 0; g < t.groups; ++g) {
    __m512i w[V];
    source.load(weights, w);
    if constexpr (fetch == Fetch::panel) {
      _mm_prefetch(ahead, _MM_HINT_T1);
      ahead += 64;
    } else if constexpr (fetch == Fetch::stream) {
#pragma GCC unroll 4
      for (std::int64_t line = 0; line < V * Weights::kStep / 256; ++line)
        _mm_prefetch(weights + kStreamAhead + line * 64, _MM_HINT_T1);
    }
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

// Tiles over a panel's rows, one below the other.
template <class Dot, class Weights, Fetch fetch>
struct Tiles {
  Tile t;
  const Weights& source;

  template <int R, int V>
  void tile(int column) {
    multiply_tile<Dot, Weights, R, V, fetch>(t, column, source);
    t.ahead += t.groups * 64;
  }
  template <int R>
  void next() {
    tile<R, 4>(0);
    advance(R);
  }
  // As two halves, of which columns that do not exist are left out, 16 at a time where the weights come so.
  template <int R>
  void next_halves() {
    for (int column = 0; column < t.columns; column += 32) {
      if (t.columns - column > 16 || Weights::kVectors == 2) {
        tile<R, 2>(column);
      } else {
        tile<R, Weights::kVectors>(column);
      }
    }
    advance(R);
  }
  void advance(int rows) {
    t.a += rows * t.a_stride;
    t.c += rows * t.c_stride;
    t.row_scale += rows;
  }
  // The last few rows.
  void rest(std::int64_t rows) {
    switch (rows) {
      case 1: return next<1>();
      case 2: return next<2>();
      case 3: return next<3>();
      case 4: return next<4>();
      case 5: return next<5>();
      default: return;
    }
  }
  void rest_halves(std::int64_t rows) {
    switch (rows) {
      case 1: return next_halves<1>();
      case 2: return next_halves<2>();
      case 3: return next_halves<3>();
      case 4: return next_halves<4>();
      case 5: return next_halves<5>();
      case 6: return next_halves<6>();
      case 7: return next_halves<7>();
      default: return;
    }
  }
};

// All `rows` rows of the block: 6 x 64 tiles, or 8 x 32 ones where they leave no tail and a 6 would, and where the
// panel's last columns do not exist.
template <class Dot, Fetch fetch>
void multiply_rows(const Tile& t, std::int64_t rows) {
  constexpr PlainWeights plain;
  Tiles<Dot, PlainWeights, fetch> tiles{t, plain};
  if (t.columns <= 48 || (rows % 8 == 0 && rows % 6 != 0 && rows <= 64)) {
    for (; rows >= 8; rows -= 8) tiles.template next_halves<8>();
    tiles.rest_halves(rows);
    return;
  }
  for (; rows >= 6; rows -= 6) tiles.template next<6>();
  tiles.rest(rows);
}

// How a class multiplies rows by a panel. A product offers
//   kBlockRows, kRowGrain  rows of a block, and what they are cut into where there are many
//   kThreadRows            with fewer rows, threads share the columns
//   kRowBytes              what is read of an activation's row is a multiple of this
//   kDecodeRows            E4M3 panels are decoded into cache for more rows than this
//   multiply(tile, rows)
template <class Dot>
struct RegisterProduct {
  static constexpr std::int64_t kBlockRows = Dot::kBlockRows, kRowGrain = 6, kThreadRows = 5, kRowBytes = 4,
                                kDecodeRows = 8;
  static void multiply(const Tile& t, std::int64_t rows) {
    if (rows <= 8) {
      multiply_rows<Dot, Fetch::none>(t, rows);
    } else {
      multiply_rows<Dot, Fetch::panel>(t, rows);
    }
  }
};

}  // namespace
}  // namespace octavo::avx512_kernels
