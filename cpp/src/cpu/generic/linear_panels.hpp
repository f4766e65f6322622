// The register tile of the generic linear kernels: FP32 sums of some rows times a panel of columns in BF16.
#pragma once

#include "cpu/generic/linear_vector.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

constexpr int kPanelVectors = 2;
constexpr std::int64_t kPanel = kPanelVectors * kLanes;              // output columns of one panel
constexpr int kMicroRows = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 4;  // accumulators fill the registers
constexpr std::int64_t kSerialMacs = 60000;                          // a fork costs more than this much work

inline std::int64_t panels_of(std::int64_t n) { return (n + kPanel - 1) / kPanel; }

// c [rows, kPanel] (+)= a [depth, rows]^T w [depth, kPanel]
template <int rows>
[[gnu::noinline]] void multiply(const float* a, const std::uint16_t* w, std::int64_t depth, float* c,
                                std::int64_t stride, bool add) {
  Vec sums[rows][kPanelVectors];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; ++v) sums[r][v] = add ? load(c + r * stride + v * kLanes) : Vec{};
  for (std::int64_t i = 0; i < depth; ++i) {
    Vec weights[kPanelVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; ++v) weights[v] = load(w + i * kPanel + v * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kPanelVectors; ++v) sums[r][v] += a[i * rows + r] * weights[v];
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; ++v) store(c + r * stride + v * kLanes, sums[r][v]);
}

// The micro-kernel's heights: whole micro-rows, then what is left in powers of two.
inline int micro_height(std::int64_t left) {
  return left >= kMicroRows ? kMicroRows : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

inline void multiply(int rows, const float* a, const std::uint16_t* w, std::int64_t depth, float* c,
                     std::int64_t stride, bool add) {
  switch (rows) {
    case 1: multiply<1>(a, w, depth, c, stride, add); break;
    case 2: multiply<2>(a, w, depth, c, stride, add); break;
    case 4: multiply<4>(a, w, depth, c, stride, add); break;
    default: multiply<kMicroRows>(a, w, depth, c, stride, add);
  }
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA_NAMESPACE
