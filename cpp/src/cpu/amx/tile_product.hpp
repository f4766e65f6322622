// Products on AMX tiles: 32 rows x 32 columns of sums in four tiles, 64 bytes of every row of activations a step.
//
// The panels are those of the AVX-512 kernels (linear_tile.hpp): sixteen groups of sixteen columns are one tile, 256
// bytes between its rows. Rows of activations are readable, and finite numbers, to a multiple of 64 bytes. What is left
// of a pass behind its last full step is copied next to zeros: a configuration for it would clear the sums.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "cpu/avx512/linear_tile.hpp"

namespace octavo::amx_kernels {
namespace {

using avx512_kernels::first_lanes;
using avx512_kernels::kGroupBytes;
using avx512_kernels::kPanel;

constexpr std::int64_t kTileRows = 16, kTileBytes = 64, kStepGroups = 16;
constexpr std::int64_t kStepBytes = kStepGroups * kGroupBytes;  // of a panel

// Tiles 0-3 hold sums (upper left, upper right, lower left, lower right), 4 and 5 activations, 6 and 7 weights.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};

  TileConfig(std::int64_t upper, std::int64_t lower) {
    const std::int64_t of[8] = {upper, upper, lower, lower, upper, lower, kStepGroups, kStepGroups};
    for (int tile = 0; tile < 8; ++tile) {
      rows[tile] = static_cast<std::uint8_t>(of[tile]);
      row_bytes[tile] = of[tile] == 0 ? 0 : kTileBytes;
    }
  }
};

// g++ 12 does not know that tile instructions read memory.
inline void memory_is_read() { asm volatile("" : : : "memory"); }

inline void configure(const TileConfig& config) {
  memory_is_read();
  _tile_loadconfig(&config);
}

// Gives a thread's tiles back.
struct TileRelease {
  TileRelease() = default;
  TileRelease(const TileRelease&) = delete;
  TileRelease& operator=(const TileRelease&) = delete;
  ~TileRelease() { _tile_release(); }
};

// BF16 pairs, sums in FP32. Denormals count as zero, as vdpbf16ps has them.
struct Bf16Tiles {
  static constexpr std::int64_t kFewRows = 0;  // sums in another order would make a row depend on its batch
  template <int sum, int a, int w>
  [[gnu::always_inline]] static inline void add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(w));
  }
  [[gnu::always_inline]] static inline __m512 number(const float* c, __m512i) { return _mm512_loadu_ps(c); }
};

// Four unsigned activations times four signed weights, sums in INT32 that start at zero: `start` is still to be added.
struct Int8Tiles {
  using Registers = avx512_kernels::RegisterProduct<avx512_kernels::Int8Dot>;
  static constexpr std::int64_t kFewRows = 8;
  template <int sum, int a, int w>
  [[gnu::always_inline]] static inline void add() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(w));
  }
  [[gnu::always_inline]] static inline __m512 number(const float* c, __m512i start) {
    return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_loadu_si512(c), start));
  }
};

// What is left of the sums when the last pass is over.
template <class Dot, int V>
[[gnu::noinline]] void finish_sums(const Tile& t, std::int64_t rows, std::int64_t column) {
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const std::int64_t at = column + v * 16;
    const __mmask16 mask = first_lanes(t.columns - at);
    const __m512 bias = t.bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, t.bias + at);
    const __m512 scale =
        t.column_scale == nullptr ? _mm512_set1_ps(1.0f) : _mm512_maskz_loadu_ps(mask, t.column_scale + at);
    const __m512i start = t.start == nullptr ? _mm512_setzero_si512() : _mm512_loadu_si512(t.start + at);
    float* c = t.c + at;
    for (std::int64_t r = 0; r < rows; ++r, c += t.c_stride) {
      const __m512 both = _mm512_mul_ps(_mm512_set1_ps(t.row_scale[r]), scale);
      _mm512_storeu_ps(c, _mm512_fmadd_ps(Dot::number(c, start), both, bias));
    }
  }
}

// One pass over the 32 (V = 2) or 16 columns from `column` on; `tail` holds the groups behind the last full step.
template <class Dot, bool lower, int V>
[[gnu::noinline]] void multiply_tiles(const Tile& t, std::int64_t column, const char* tail) {
  const std::int64_t c_bytes = t.c_stride * std::int64_t{sizeof(float)};
  float* c = t.c + column;
  float* c_lower = c + kTileRows * t.c_stride;
  memory_is_read();
  if (t.first) {
    _tile_zero(0);
    if constexpr (V == 2) _tile_zero(1);
    if constexpr (lower) _tile_zero(2);
    if constexpr (lower && V == 2) _tile_zero(3);
  } else {
    _tile_loadd(0, c, c_bytes);
    if constexpr (V == 2) _tile_loadd(1, c + 16, c_bytes);
    if constexpr (lower) _tile_loadd(2, c_lower, c_bytes);
    if constexpr (lower && V == 2) _tile_loadd(3, c_lower + 16, c_bytes);
  }
  const auto step = [&](const char* a, const char* w) __attribute__((always_inline)) {
    _tile_loadd(6, w, kGroupBytes);
    _tile_loadd(4, a, t.a_stride);
    Dot::template add<0, 4, 6>();
    if constexpr (V == 2) {
      _tile_loadd(7, w + kTileBytes, kGroupBytes);
      Dot::template add<1, 4, 7>();
    }
    if constexpr (lower) {
      _tile_loadd(5, a + kTileRows * t.a_stride, t.a_stride);
      Dot::template add<2, 5, 6>();
      if constexpr (V == 2) Dot::template add<3, 5, 7>();
    }
  };
  const char* a = t.a;
  const char* w = t.weights + column * 4;
  for (std::int64_t s = t.groups / kStepGroups; s > 0; --s, a += kTileBytes, w += kStepBytes) step(a, w);
  if (tail != nullptr) step(a, tail + column * 4);
  _tile_stored(0, c, c_bytes);
  if constexpr (V == 2) _tile_stored(1, c + 16, c_bytes);
  if constexpr (lower) _tile_stored(2, c_lower, c_bytes);
  if constexpr (lower && V == 2) _tile_stored(3, c_lower + 16, c_bytes);
}

template <class Dot>
struct TileProduct {
  static constexpr std::int64_t kBlockRows = 128, kRowGrain = 32, kThreadRows = 32, kRowBytes = kTileBytes,
                                kDecodeRows = 0;

  static void multiply(const Tile& t, std::int64_t rows) {
    if constexpr (Dot::kFewRows > 0)
      if (rows <= Dot::kFewRows) return Dot::Registers::multiply(t, rows);  // tiles would be nearly empty
    const TileRelease release;
    alignas(64) char left[kStepBytes];
    const char* tail = nullptr;
    if (const std::int64_t groups = t.groups % kStepGroups; groups > 0) {
      std::memcpy(left, t.weights + (t.groups - groups) * kGroupBytes, to_bytes(groups * kGroupBytes));
      std::memset(left + groups * kGroupBytes, 0, to_bytes((kStepGroups - groups) * kGroupBytes));
      tail = left;
    }
    for (std::int64_t column = 0; column < t.columns; column += 32) {
      if (t.columns - column > 16) {
        multiply_columns<2>(t, rows, column, tail);
      } else {
        multiply_columns<1>(t, rows, column, tail);
      }
    }
  }

 private:
  // All rows, so that the columns' weights stay in L1.
  template <int V>
  [[gnu::noinline]] static void multiply_columns(const Tile& whole, std::int64_t rows, std::int64_t column,
                                                 const char* tail) {
    Tile t = whole;
    const auto next = [&](std::int64_t count) {
      if (count > kTileRows) {
        multiply_tiles<Dot, true, V>(t, column, tail);
      } else {
        multiply_tiles<Dot, false, V>(t, column, tail);
      }
      if (t.last) finish_sums<Dot, V>(t, count, column);
      t.a += count * t.a_stride;
      t.c += count * t.c_stride;
      t.row_scale += count;
    };
    if (rows >= 2 * kTileRows) {
      configure(TileConfig(kTileRows, kTileRows));
      for (; rows >= 2 * kTileRows; rows -= 2 * kTileRows) next(2 * kTileRows);
    }
    if (rows > 0) {
      const std::int64_t upper = rows < kTileRows ? rows : kTileRows;
      configure(TileConfig(upper, rows - upper));
      next(rows);
    }
  }
};

}  // namespace
}  // namespace octavo::amx_kernels
