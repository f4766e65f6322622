// What the backward kernels, CUDA's too, share of the optimizers: constants of a call, layout of the state, scales of
// new rows.
//
// In an anonymous namespace: compiled with several instruction sets, and the linker must never mix the copies.
#pragma once

#include <cmath>

#include "octavo/embedding.hpp"

namespace octavo {
namespace {

using Optimizer = OptimizerConfig::Kind;

// Learning rate of the call: Adam's has the corrections of both biases in it.
inline float step_size(const OptimizerConfig& optimizer) {
  if (optimizer.kind != Optimizer::adam) return optimizer.lr;
  const auto step = static_cast<double>(optimizer.step);
  const double first = 1.0 - std::pow(static_cast<double>(optimizer.beta1), step);
  const double second = 1.0 - std::pow(static_cast<double>(optimizer.beta2), step);
  return static_cast<float>(static_cast<double>(optimizer.lr) * std::sqrt(second) / first);
}

// FP32 numbers of state a row.
constexpr std::int64_t state_width(Optimizer kind, std::int64_t dim) {
  switch (kind) {
    case Optimizer::row_wise_adagrad: return 1;
    case Optimizer::adagrad: return dim;
    case Optimizer::adam: return 2 * dim;
    default: return 0;
  }
}

// INT8 and INT4: code = (x - bias) * multiplier, x = code * scale + bias, codes from 0 to `largest`. Of the finite
// numbers of a row, from `low` to `high`; none: low > high. These may be clamped: 255 * scale overflows where a row
// spans more than FP32 reaches.
struct AffineScale {
  float scale, bias, multiplier;
};

constexpr AffineScale affine_scale(float& low, float& high, float largest) {
  if (!(low <= high)) return {0.0f, 0.0f, 0.0f};
  constexpr float kReach = 1.7e38f;  // twice that is finite, and left so by rounding
  if (high / 2 - low / 2 > kReach) {
    low = low < -kReach ? -kReach : low;
    high = high > kReach ? kReach : high;
  }
  const float scale = high / largest - low / largest;
  constexpr float kSmallest = 0x1p-126f;
  return {scale, low, scale > 0.0f ? 1.0f / (scale < kSmallest ? kSmallest : scale) : 0.0f};
}

// Into L1 (bag_prefetch.hpp says why). Always inlined, as its callers must be: GCC takes a function that only
// prefetches for one without effects, and deletes the calls.
[[gnu::always_inline]] inline void prefetch_bytes(const void* data, std::int64_t bytes) {
  const char* p = static_cast<const char*>(data);
  for (std::int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(p + at, 0, 3);
  __builtin_prefetch(p + bytes - 1, 0, 3);
}

// All that the update of a row reads.
[[gnu::always_inline]] inline void prefetch_row(const TableView& table, Optimizer kind, std::uint64_t row) {
  const auto element = static_cast<std::int64_t>(size_of(table.dtype)), at = static_cast<std::int64_t>(row);
  prefetch_bytes(static_cast<const char*>(table.rows) + at * table.row_stride * element, table.stored_bytes());
  const std::int64_t width = state_width(kind, table.dim);
  if (width > 0) prefetch_bytes(table.optimizer_state + at * width, width * 4);
  if (table.scale != nullptr) __builtin_prefetch(table.scale_of(at), 0, 3);
}

}  // namespace
}  // namespace octavo
