// What add_norm and its backward do to panels of tokens that lie across.
//
// In an anonymous namespace, as linear_vector.hpp.
#pragma once

#include <algorithm>

#include "cpu/generic/row_panels.hpp"
#include "octavo/add_norm.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

// f(element) summed over the rows' columns [begin, end), every lane its own row. Four chains.
template <class F>
[[gnu::always_inline]] inline Vec sum_rows(const float* panel, std::int64_t begin, std::int64_t end, F f) {
  Vec s[4] = {};
  std::int64_t k = begin;
  for (; k + 4 <= end; k += 4)
    for (int i = 0; i < 4; ++i) s[i] += f(load(panel + (k + i) * kLanes));
  for (; k < end; ++k) s[0] += f(load(panel + k * kLanes));
  return (s[0] + s[1]) + (s[2] + s[3]);
}

[[gnu::always_inline]] inline Vec reciprocal_root(Vec mean_square) {
  Vec root;
  for (int i = 0; i < kLanes; ++i) root[i] = __builtin_sqrtf(mean_square[i]);
  return 1.0f / root;
}

// What a lane's row is multiplied by, of its columns [begin, end) less `mean`.
[[gnu::always_inline]] inline Vec inverse_deviation(const float* panel, std::int64_t begin, std::int64_t end, Vec mean,
                                                    float eps) {
  const Vec squares = sum_rows(panel, begin, end, [&](Vec v) { return (v - mean) * (v - mean); });
  return reciprocal_root(squares / static_cast<float>(end - begin) + eps);
}

// Sample b's rows of `view` into the panels, or onto them, as tokens from `token` on.
template <bool kAdd, class T>
void pack(const BatchView& view, std::int64_t b, std::int64_t token, std::int64_t depth, float* panels) {
  const T* rows = static_cast<const T*>(view.data) + b * view.batch_stride;
  for (std::int64_t row = 0; row < view.rows;) {
    const std::int64_t lane = (token + row) % kLanes, count = std::min(view.rows - row, kLanes - lane);
    pack_lanes<kAdd>(rows + row * view.row_stride, view.row_stride, view.col_stride, Range{lane, lane + count}, depth,
                     panels + (token + row) / kLanes * depth * kLanes);
    row += count;
  }
}

inline std::int64_t panel_floats(std::int64_t tokens, std::int64_t depth) {
  return (tokens + kLanes - 1) / kLanes * depth * kLanes;
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA_NAMESPACE
