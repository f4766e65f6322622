// Parts, residual and norm of one sample at a time, on panels of tokens that a cache holds: 4 KB for 32 tokens of 32.
#include "octavo/add_norm.hpp"

#include <algorithm>

#include "cpu/generic/add_norm_panels.hpp"
#include "octavo/memory.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

void normalise(float* panel, std::int64_t depth, const AddNormArgs& a) {
  if (a.norm == NormKind::none) return;
  const std::int64_t block = a.norm == NormKind::block ? a.norm_block : depth;
  for (std::int64_t begin = 0; begin < depth; begin += block) {
    const std::int64_t end = std::min(begin + block, depth);
    Vec mean{};
    if (a.norm == NormKind::layer)
      mean = sum_rows(panel, begin, end, [](Vec v) { return v; }) / static_cast<float>(end - begin);
    const Vec inverse = inverse_deviation(panel, begin, end, mean, a.eps);
    for (std::int64_t k = begin; k < end; ++k) {
      Vec v = (load(panel + k * kLanes) - mean) * inverse;
      if (a.weight != nullptr) v *= a.weight[k];
      if (a.bias != nullptr) v += a.bias[k];
      store(panel + k * kLanes, a.norm == NormKind::swish_rms ? v * sigmoid(v) : v);
    }
  }
}

// The panel's first `count` rows to columns of [depth, tokens].
template <class T>
void store_columns(const float* panel, std::int64_t count, std::int64_t depth, std::int64_t tokens, T* columns) {
  for (std::int64_t k = 0; k < depth; ++k, panel += kLanes, columns += tokens) {
    if (count == kLanes)
      store(columns, load(panel));
    else
      store_part(columns, load(panel), count);
  }
}

template <class T>
void join_sample(const AddNormArgs& a, std::int64_t b, std::int64_t tokens, std::int64_t depth, float* panels) {
  std::int64_t token = 0;
  for (int i = 0; i < a.part_count; ++i) {
    pack<false, T>(a.parts[i], b, token, depth, panels);
    token += a.parts[i].rows;
  }
  if (a.residual.data != nullptr) pack<true, T>(a.residual, b, 0, depth, panels);
  T* saved = a.saved == nullptr ? nullptr : static_cast<T*>(a.saved) + b * tokens * depth;
  T* rows = static_cast<T*>(a.out) + b * tokens * depth;
  T* columns = a.out_transposed == nullptr ? nullptr : static_cast<T*>(a.out_transposed) + b * tokens * depth;
  for (std::int64_t first = 0; first < tokens; first += kLanes) {
    float* panel = panels + first * depth;
    const std::int64_t count = std::min<std::int64_t>(tokens - first, kLanes);
    if (saved != nullptr) unpack_rows(panel, count, depth, saved + first * depth);
    normalise(panel, depth, a);
    unpack_rows(panel, count, depth, rows + first * depth);
    if (columns != nullptr) store_columns(panel, count, depth, tokens, columns + first);
  }
}

template <class T>
void join(const AddNormArgs& a) {
  const std::int64_t tokens = a.tokens(), depth = a.parts[0].cols;
  const int count = a.batch * tokens * depth < 16384 ? 1 : threads();
  parallel_region(count, [&](int thread, int n) {
    const std::size_t bytes = static_cast<std::size_t>(panel_floats(tokens, depth)) * sizeof(float);
    auto* panels = static_cast<float*>(scratch(0, bytes));
    std::memset(panels, 0, bytes);  // lanes beyond the last token are computed with, never kept
    const auto [begin, end] = partition(a.batch, thread, n);
    for (std::int64_t b = begin; b < end; ++b) join_sample<T>(a, b, tokens, depth, panels);
  });
}

}  // namespace

Status add_norm(const AddNormArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  if (args.batch == 0 || args.tokens() == 0 || args.parts[0].cols == 0) return {};
  args.parts[0].dtype == DType::f32 ? join<float>(args) : join<std::uint16_t>(args);
  return {};
}

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
