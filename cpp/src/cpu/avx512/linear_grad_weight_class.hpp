// grad_weight [N, K] = grad^T x: both operands are woven into pairs of rows, so that the sum over M runs along pairs.
//
// x lies in panels of 64 columns, grad in strips of some. M is cut into passes whose panel stays in L2; sums of earlier
// passes wait in grad_weight itself. Threads share the packing of a pass, then its tiles; every element is summed over
// M in order.
#pragma once

#include <cstring>

#include "cpu/avx512/bf16_pairs.hpp"
#include "cpu/avx512/linear_activations.hpp"
#include "octavo/linear_backward.hpp"

namespace octavo::avx512_kernels {
namespace {

constexpr std::int64_t kPassRows = 512;
constexpr std::int64_t kChunkGroups = 16;  // pairs of rows packed at a time

// One group more than a panel holds: rows written side by side fall into different cache sets.
inline std::int64_t panel_stride(std::int64_t groups) { return (groups + 1) * kGroupBytes; }

// The pairs of rows of one pass over a matrix.
struct RowPairs {
  const MatrixView& of;
  std::int64_t begin;  // row of the first pair

  bool exists(std::int64_t pair) const { return begin + 2 * pair < of.rows; }
  const char* first(std::int64_t pair) const { return row_of(of, begin + 2 * pair); }
  const char* second(std::int64_t pair) const {
    return begin + 2 * pair + 1 < of.rows ? row_of(of, begin + 2 * pair + 1) : nullptr;
  }
};

// One pass over M of one strip and one panel.
struct OuterTile {
  const char *strip, *panel;
  std::int64_t groups;
  float* c;  // grad_weight
  std::int64_t c_stride;
  std::int64_t rows, columns;  // of the strip and of the panel that exist
  bool first, last;            // pass
  const float* row_scale;      // of the strip's first row; null: 1
  const float* column_scale;   // of the panel's first column
};

// Strips offer
//   kStrip, kGroupUnit  columns of grad in a strip; pairs of a pass are a multiple of the unit, with zeros at the end
//   stride(groups)      bytes between strips
//   pack(source, pairs of grad, from, to, strips, groups), multiply(OuterTile)
//
// A class of kernels offers with_grad_source(f) and with_x_source(f), which call f with what reads pairs of rows
// (bf16_pairs.hpp), and the scales of the rows and columns of grad_weight, or null.
template <class Class, class Strips>
class GradWeight {
 public:
  GradWeight(const GradWeightArgs& args, const Class& kernel)
      : args_(args),
        kernel_(kernel),
        m_(args.grad.rows),
        n_(args.grad.cols),
        k_(args.x.cols),
        strips_((n_ + Strips::kStrip - 1) / Strips::kStrip),
        panels_((k_ + kPanel - 1) / kPanel) {}

  void run() {
    if (n_ == 0 || k_ == 0) return;
    const int count = m_ * n_ * k_ < kSerialMacs ? 1 : threads();
    const std::int64_t depth = m_ < kPassRows ? m_ : kPassRows, groups = pairs(depth);
    strip_data_ = static_cast<char*>(scratch(3, to_bytes(strips_ * Strips::stride(groups) + 64)));
    panel_data_ = static_cast<char*>(scratch(4, to_bytes(panels_ * panel_stride(groups) + 64)));
    for (std::int64_t begin = 0; begin == 0 || begin < m_; begin += kPassRows) {
      const std::int64_t end = m_ - begin < kPassRows ? m_ : begin + kPassRows;
      groups_ = pairs(end - begin);
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
  static std::int64_t pairs(std::int64_t rows) { return round_up((rows + 1) / 2, Strips::kGroupUnit); }

  // The pairs [from, to) of the pass that starts at row `begin`.
  void pack(std::int64_t begin, std::int64_t from, std::int64_t to) const {
    kernel_.with_grad_source(
        [&](const auto& source) { Strips::pack(source, RowPairs{args_.grad, begin}, from, to, strip_data_, groups_); });
    kernel_.with_x_source([&](const auto& source) {
      const RowPairs x{args_.x, begin};
      for (std::int64_t g = from; g < to; ++g)
        for (std::int64_t p = 0; p < panels_; ++p) {
          char* out = panel_data_ + p * panel_stride(groups_) + g * kGroupBytes;
          if (x.exists(g)) {
            weave_panel(source, x.first(g), x.second(g), p * kPanel, k_, out);
          } else {
            std::memset(out, 0, kGroupBytes);
          }
        }
    });
  }

  void multiply(std::int64_t strip, std::int64_t panel, bool first, bool last) const {
    const std::int64_t row = strip * Strips::kStrip, column = panel * kPanel;
    OuterTile t;
    t.strip = strip_data_ + strip * Strips::stride(groups_);
    t.panel = panel_data_ + panel * panel_stride(groups_);
    t.groups = groups_;
    t.c_stride = args_.grad_weight.row_stride;
    t.c = static_cast<float*>(args_.grad_weight.data) + row * t.c_stride + column;
    t.columns = k_ - column < kPanel ? k_ - column : kPanel;
    t.first = first;
    t.last = last;
    t.row_scale = kernel_.row_scale == nullptr ? nullptr : kernel_.row_scale + row;
    t.column_scale = kernel_.column_scale == nullptr ? nullptr : kernel_.column_scale + column;
    t.rows = n_ - row < Strips::kStrip ? n_ - row : Strips::kStrip;
    Strips::multiply(t);
  }

  const GradWeightArgs& args_;
  const Class& kernel_;
  const std::int64_t m_, n_, k_, strips_, panels_;
  std::int64_t groups_ = 0;
  char *strip_data_ = nullptr, *panel_data_ = nullptr;
};

}  // namespace
}  // namespace octavo::avx512_kernels
