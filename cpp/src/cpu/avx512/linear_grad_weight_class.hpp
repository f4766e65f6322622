// grad_weight [N, K] = grad^T x: both operands are woven into pairs of rows, so that the sum over M runs along pairs.
//
// x lies in panels of 64 columns, grad in strips of 6: a strip's group is the 24 bytes that six broadcasts of the tile
// read. M is cut into passes whose panel stays in L2; sums of earlier passes wait in grad_weight itself. Threads share
// the packing of a pass, then its tiles; every element is summed over M in order.
#pragma once

#include "cpu/avx512/bf16_pairs.hpp"
#include "cpu/avx512/linear_activations.hpp"
#include "octavo/linear_backward.hpp"

namespace octavo::avx512_kernels {
namespace {

constexpr std::int64_t kStrip = 6;
constexpr std::int64_t kStripBytes = kStrip * 4;
constexpr std::int64_t kPassRows = 512;
constexpr std::int64_t kChunkGroups = 16;  // pairs of rows packed at a time

// Bytes between strips and between panels: an odd number of lines and one group more than they hold, so that rows
// written side by side fall into different cache sets.
inline std::int64_t strip_stride(std::int64_t groups) { return round_up(groups * kStripBytes, 128) + 64; }
inline std::int64_t panel_stride(std::int64_t groups) { return (groups + 1) * kGroupBytes; }

// One pass over M of one strip and one panel.
struct OuterTile {
  const char *strip, *panel;
  std::int64_t groups;
  float* c;  // grad_weight
  std::int64_t c_stride;
  std::int64_t rows, columns;  // of the strip and of the panel that exist, 1..6 and 1..64
  bool first, last;            // pass
  const float* row_scale;      // of the strip's first row; null: 1
  const float* column_scale;   // of the panel's first column
};

// Rows that do not exist are zero in the strip; they are computed and neither read nor stored.
template <int V>
[[gnu::noinline]] void multiply_outer(const OuterTile& t) {
  __m512 sums[kStrip][V];
#pragma GCC unroll 8
  for (int r = 0; r < kStrip; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      sums[r][v] = _mm512_setzero_ps();
      if (!t.first && r < t.rows)
        sums[r][v] = _mm512_maskz_loadu_ps(first_lanes(t.columns - v * 16), t.c + r * t.c_stride + v * 16);
    }
  for (std::int64_t r = 0; r < t.rows; ++r)
    for (int v = 0; v < V; ++v) _mm_prefetch(reinterpret_cast<const char*>(t.c + r * t.c_stride + v * 16), _MM_HINT_T0);
  const char *a = t.strip, *panel = t.panel;
  for (std::int64_t g = 0; g < t.groups; ++g, a += kStripBytes, panel += kGroupBytes) {
    __m512i w[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) w[v] = _mm512_loadu_si512(panel + v * 64);
#pragma GCC unroll 8
    for (int r = 0; r < kStrip; ++r) {
      const __m512i x = _mm512_set1_epi32(*reinterpret_cast<const UnalignedGroup*>(a + r * 4));
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) Bf16Dot::add(sums[r][v], x, w[v]);
    }
  }
  const bool scaled = t.last && t.row_scale != nullptr;
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const __mmask16 mask = first_lanes(t.columns - v * 16);
    const __m512 column = scaled ? _mm512_maskz_loadu_ps(mask, t.column_scale + v * 16) : _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int r = 0; r < kStrip; ++r) {
      if (r >= t.rows) break;
      __m512 sum = sums[r][v];
      if (scaled) sum = _mm512_mul_ps(_mm512_mul_ps(sum, _mm512_set1_ps(t.row_scale[r])), column);
      _mm512_mask_storeu_ps(t.c + r * t.c_stride + v * 16, mask, sum);
    }
  }
}

constexpr std::int64_t kStripsAtOnce = 8;  // three vectors of pairs

// One group of eight strips, `stride` bytes apart: the 48 columns from `column` on of `columns`.
template <class Source>
[[gnu::always_inline]] inline void weave_strips(const Source& source, const char* row0, const char* row1,
                                                std::int64_t column, std::int64_t columns, char* out,
                                                std::int64_t stride) {
  __m512i pairs[3];
#pragma GCC unroll 3
  for (int v = 0; v < 3; ++v)
    pairs[v] = weave(source.load(row0, row1, column + v * 16, first_lanes(columns - column - v * 16)));
  const std::int64_t strips =
      columns - column >= kStrip * kStripsAtOnce ? kStripsAtOnce : (columns - column + kStrip - 1) / kStrip;
  const auto put = [&](int s, __m512i six) {
    if (s < strips) _mm256_mask_storeu_epi32(out + s * stride, 0x3f, _mm512_castsi512_si256(six));
  };
  put(0, pairs[0]);
  put(1, _mm512_alignr_epi32(pairs[1], pairs[0], 6));
  put(2, _mm512_alignr_epi32(pairs[1], pairs[0], 12));
  put(3, _mm512_alignr_epi32(pairs[2], pairs[1], 2));
  put(4, _mm512_alignr_epi32(pairs[2], pairs[1], 8));
  put(5, _mm512_alignr_epi32(pairs[2], pairs[1], 14));
  put(6, _mm512_alignr_epi32(pairs[2], pairs[2], 4));
  put(7, _mm512_alignr_epi32(pairs[2], pairs[2], 10));
}

// A class of kernels offers with_grad_source(f) and with_x_source(f), which call f with what reads pairs of rows
// (bf16_pairs.hpp), and the scales of the rows and columns of grad_weight, or null.
template <class Class>
class GradWeight {
 public:
  GradWeight(const GradWeightArgs& args, const Class& kernel)
      : args_(args),
        kernel_(kernel),
        m_(args.grad.rows),
        n_(args.grad.cols),
        k_(args.x.cols),
        strips_((n_ + kStrip - 1) / kStrip),
        panels_((k_ + kPanel - 1) / kPanel) {}

  void run() {
    if (n_ == 0 || k_ == 0) return;
    const int count = m_ * n_ * k_ < kSerialMacs ? 1 : threads();
    const std::int64_t depth = m_ < kPassRows ? m_ : kPassRows, groups = (depth + 1) / 2;
    strip_data_ = static_cast<char*>(scratch(3, to_bytes(strips_ * strip_stride(groups) + 64)));
    panel_data_ = static_cast<char*>(scratch(4, to_bytes(panels_ * panel_stride(groups) + 64)));
    for (std::int64_t begin = 0; begin == 0 || begin < m_; begin += kPassRows) {
      const std::int64_t end = m_ - begin < kPassRows ? m_ : begin + kPassRows;
      groups_ = (end - begin + 1) / 2;
      const std::int64_t chunks = (groups_ + kChunkGroups - 1) / kChunkGroups;
      parallel_region(chunks < count ? static_cast<int>(chunks) : count, [&](int thread, int used) {
        const Range own = partition(groups_, thread, used, kChunkGroups);
        for (std::int64_t g = own.begin; g < own.end; g += kChunkGroups)
          pack(begin, g, own.end - g < kChunkGroups ? own.end : g + kChunkGroups);
      });
      const bool cut_panels = panels_ % count == 0 || panels_ >= 4 * count;
      parallel_region(count, [&](int thread, int used) {
        const Range panels = cut_panels ? partition(panels_, thread, used) : Range{0, panels_};
        const Range strips = cut_panels ? Range{0, strips_} : partition(strips_, thread, used);
        for (std::int64_t p = panels.begin; p < panels.end; ++p)
          for (std::int64_t s = strips.begin; s < strips.end; ++s) multiply(s, p, begin == 0, end == m_);
      });
    }
  }

 private:
  // The pairs of rows [from, to) of the pass that starts at row `begin`.
  void pack(std::int64_t begin, std::int64_t from, std::int64_t to) const {
    const auto second = [&](std::int64_t row, const MatrixView& v) { return row < m_ ? row_of(v, row) : nullptr; };
    kernel_.with_grad_source([&](const auto& source) {
      for (std::int64_t s = 0; s < strips_; s += kStripsAtOnce) {
        char* out = strip_data_ + s * strip_stride(groups_);
        for (std::int64_t g = from; g < to; ++g) {
          const std::int64_t row = begin + 2 * g;
          weave_strips(source, row_of(args_.grad, row), second(row + 1, args_.grad), s * kStrip, n_,
                       out + g * kStripBytes, strip_stride(groups_));
        }
      }
    });
    kernel_.with_x_source([&](const auto& source) {
      for (std::int64_t g = from; g < to; ++g) {
        const std::int64_t row = begin + 2 * g;
        const char *row0 = row_of(args_.x, row), *row1 = second(row + 1, args_.x);
        for (std::int64_t p = 0; p < panels_; ++p)
          weave_panel(source, row0, row1, p * kPanel, k_, panel_data_ + p * panel_stride(groups_) + g * kGroupBytes);
      }
    });
  }

  void multiply(std::int64_t strip, std::int64_t panel, bool first, bool last) const {
    const std::int64_t row = strip * kStrip, column = panel * kPanel;
    OuterTile t;
    t.strip = strip_data_ + strip * strip_stride(groups_);
    t.panel = panel_data_ + panel * panel_stride(groups_);
    t.groups = groups_;
    t.c_stride = args_.grad_weight.row_stride;
    t.c = static_cast<float*>(args_.grad_weight.data) + row * t.c_stride + column;
    t.columns = k_ - column < kPanel ? k_ - column : kPanel;
    t.first = first;
    t.last = last;
    t.row_scale = kernel_.row_scale == nullptr ? nullptr : kernel_.row_scale + row;
    t.column_scale = kernel_.column_scale == nullptr ? nullptr : kernel_.column_scale + column;
    t.rows = n_ - row < kStrip ? n_ - row : kStrip;
    if (t.columns > 32) {
      multiply_outer<4>(t);
    } else if (t.columns > 16) {
      multiply_outer<2>(t);
    } else {
      multiply_outer<1>(t);
    }
  }

  const GradWeightArgs& args_;
  const Class& kernel_;
  const std::int64_t m_, n_, k_, strips_, panels_;
  std::int64_t groups_ = 0;
  char *strip_data_ = nullptr, *panel_data_ = nullptr;
};

}  // namespace
}  // namespace octavo::avx512_kernels
