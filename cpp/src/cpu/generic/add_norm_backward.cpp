// Gradient through the norm that ends a layer over tokens, on the panels of its forward: gradients of y and of y^T are
// added where they are packed, sums over a row are sums of vectors, sums over rows stay in lanes until a chunk ends.
//
// Samples are cut into chunks whose number depends on the batch alone; each sums its own and they are added in order,
// so every thread count gives the same bits.
#include "cpu/generic/add_norm_panels.hpp"
#include "octavo/memory.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

// Sums over the rows of a chunk, [D] vectors each whose lanes are added at its end; null where nobody asked.
struct Sums {
  float *weight, *bias;
};

[[gnu::always_inline]] inline void add_to(float* sums, std::int64_t k, Vec v) {
  if (sums != nullptr) store(sums + k * kLanes, load(sums + k * kLanes) + v);
}

// `grad`: of y, on the way out of z. `z` is left normalised. Of a panel the first `rows` lanes are rows; the others
// hold zeros and give zeros, whatever eps makes of their deviation.
void pull(const AddNormBackwardArgs& a, std::int64_t depth, std::int64_t rows, float* z, float* grad, Sums sums) {
  const std::int64_t block = a.norm == NormKind::block ? a.norm_block : depth;
  const bool centred = a.norm == NormKind::layer;
  for (std::int64_t begin = 0; begin < depth; begin += block) {
    const std::int64_t end = std::min(begin + block, depth);
    const auto count = static_cast<float>(end - begin);
    Vec mean{};
    if (centred) mean = sum_rows(z, begin, end, [](Vec v) { return v; }) / count;
    const Vec inverse = keep_first(inverse_deviation(z, begin, end, mean, a.eps), rows);
    Vec total{}, product{};
    for (std::int64_t k = begin; k < end; ++k) {
      const Vec x = (load(z + k * kLanes) - mean) * inverse;
      Vec g = load(grad + k * kLanes);
      const float w = a.weight == nullptr ? 1.0f : a.weight[k];
      if (a.norm == NormKind::swish_rms) {
        const Vec v = x * w, s = sigmoid(v);
        g *= s * (1.0f + v * (1.0f - s));
      }
      add_to(sums.weight, k, g * x);
      add_to(sums.bias, k, g);
      g *= w;
      total += g;
      product += g * x;
      store(z + k * kLanes, x);
      store(grad + k * kLanes, g);
    }
    const Vec shift = centred ? total / count : Vec{}, slope = product / count;
    for (std::int64_t k = begin; k < end; ++k) {
      float* g = grad + k * kLanes;
      store(g, (load(g) - shift - load(z + k * kLanes) * slope) * inverse);
    }
  }
}

// Zeros in the lanes of the last panel that have no row.
void clear_rest(float* panels, std::int64_t tokens, std::int64_t depth) {
  const std::int64_t used = tokens % kLanes;
  if (used == 0) return;
  float* last = panels + tokens / kLanes * depth * kLanes;
  for (std::int64_t k = 0; k < depth; ++k)
    for (std::int64_t lane = used; lane < kLanes; ++lane) last[k * kLanes + lane] = 0;
}

template <class T>
void pull_sample(const AddNormBackwardArgs& a, std::int64_t b, std::int64_t tokens, std::int64_t depth, float* z,
                 float* grad, Sums sums) {
  const bool both = a.grad.data != nullptr && a.grad_transposed.data != nullptr;
  pack<false, T>(a.grad.data != nullptr ? a.grad : a.grad_transposed, b, 0, depth, grad);
  if (both) pack<true, T>(a.grad_transposed, b, 0, depth, grad);
  if (a.norm != NormKind::none) {
    pack<false, T>({a.z, tokens, depth, tokens * depth, depth, 1, a.grad.dtype}, b, 0, depth, z);
    clear_rest(z, tokens, depth);
    clear_rest(grad, tokens, depth);
  }
  T* out = static_cast<T*>(a.grad_z) + b * tokens * depth;
  for (std::int64_t first = 0; first < tokens; first += kLanes) {
    const std::int64_t rows = std::min<std::int64_t>(tokens - first, kLanes);
    if (a.norm != NormKind::none) pull(a, depth, rows, z + first * depth, grad + first * depth, sums);
    unpack_rows(grad + first * depth, rows, depth, out + first * depth);
  }
}

template <class T>
void pull_all(const AddNormBackwardArgs& a) {
  const BatchView& first = a.grad.data != nullptr ? a.grad : a.grad_transposed;
  const std::int64_t tokens = first.rows, depth = first.cols;
  const std::int64_t grain = std::max<std::int64_t>((a.batch + 63) / 64, 1), chunks = (a.batch + grain - 1) / grain;
  float* const wanted[] = {a.grad_weight, a.grad_bias};
  auto* partial = static_cast<float*>(scratch(1, static_cast<std::size_t>(2 * chunks * depth) * sizeof(float)));
  const std::int64_t panels = panel_floats(tokens, depth), sums = depth * kLanes;
  const int count = a.batch * tokens * depth < 16384 ? 1 : threads();
  parallel_region(count < chunks ? count : static_cast<int>(chunks), [&](int thread, int n) {
    auto* memory = static_cast<float*>(scratch(0, static_cast<std::size_t>(2 * panels + 2 * sums) * sizeof(float)));
    float* const own[] = {memory + 2 * panels, memory + 2 * panels + sums};
    const auto [begin, end] = partition(chunks, thread, n);
    for (std::int64_t c = begin; c < end; ++c) {
      std::memset(own[0], 0, static_cast<std::size_t>(2 * sums) * sizeof(float));
      const Sums of_chunk{wanted[0] == nullptr ? nullptr : own[0], wanted[1] == nullptr ? nullptr : own[1]};
      for (std::int64_t b = c * grain; b < std::min(a.batch, (c + 1) * grain); ++b)
        pull_sample<T>(a, b, tokens, depth, memory, memory + panels, of_chunk);
      for (int kind = 0; kind < 2; ++kind)
        for (std::int64_t k = 0; k < depth; ++k)
          partial[(2 * c + kind) * depth + k] = sum_of(load(own[kind] + k * kLanes));
    }
  });
  for (int kind = 0; kind < 2; ++kind) {
    if (wanted[kind] == nullptr) continue;
    std::fill_n(wanted[kind], depth, 0.0f);
    for (std::int64_t c = 0; c < chunks; ++c)
      for (std::int64_t k = 0; k < depth; ++k) wanted[kind][k] += partial[(2 * c + kind) * depth + k];
  }
}

}  // namespace

Status add_norm_backward(const AddNormBackwardArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  const BatchView& first = args.grad.data != nullptr ? args.grad : args.grad_transposed;
  first.dtype == DType::f32 ? pull_all<float>(args) : pull_all<std::uint16_t>(args);
  return {};
}

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
