// Rows of codes become panels of 64 columns by transposes of 32-bit pieces: a training step packs its weights anew.
#pragma once

#include "cpu/avx512/linear_tile.hpp"
#include "cpu/avx512/transpose.hpp"

namespace octavo::avx512_kernels {
namespace {

// 32 bits of each of a panel's columns, sixteen columns a vector; zero for columns that do not exist.
struct Piece {
  __m512i columns[4];
};

// put(i, piece): bytes [4 i, 4 i + 4) of the first 64 of `count` rows, zero beyond a row's end.
template <class Put>
[[gnu::always_inline]] inline void transpose_panel(const char* rows, std::int64_t count, std::int64_t row_bytes,
                                                   Put&& put) {
  for (std::int64_t at = 0; at < row_bytes; at += 64) {
    const std::int64_t left = row_bytes - at, pieces = left >= 64 ? 16 : (left + 3) / 4;
    const __mmask64 mask = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
    __m512i quarters[4][16];
    for (int q = 0; q < 4; ++q) {
      const char* row = rows + 16 * q * row_bytes + at;
      __m512i block[16];
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r, row += row_bytes)
        block[r] = _mm512_maskz_loadu_epi8(16 * q + r < count ? mask : 0, row);
      transpose(block);
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) quarters[q][r] = block[r];
    }
    for (std::int64_t i = 0; i < pieces; ++i)
      put(at / 4 + i, Piece{{quarters[0][i], quarters[1][i], quarters[2][i], quarters[3][i]}});
  }
}

// The piece as a group of a panel of 4-byte groups.
[[gnu::always_inline]] inline void store_group(char* panel, std::int64_t i, const Piece& piece) {
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) _mm512_storeu_si512(panel + i * kGroupBytes + q * 64, piece.columns[q]);
}

// Calls pack(panel, its first row, how many rows there are from that one on), on several threads where that pays.
template <class Pack>
void for_each_panel(const PackedWeight& w, Pack&& pack) {
  const std::int64_t row_bytes = w.k() * static_cast<std::int64_t>(size_of(w.format()));
  parallel_region(w.n() * w.k() < kSerialMacs ? 1 : threads(), [&](int thread, int used) {
    const Range own = partition((w.n() + kPanel - 1) / kPanel, thread, used);
    for (std::int64_t p = own.begin; p < own.end; ++p)
      pack(p, static_cast<const char*>(w.codes()) + p * kPanel * row_bytes, w.n() - p * kPanel);
  });
}

}  // namespace
}  // namespace octavo::avx512_kernels
