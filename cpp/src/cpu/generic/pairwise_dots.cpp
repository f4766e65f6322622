// Products of every pair of rows in FP32 units: class fp32 takes values as they are, class bf16 rounds them first.
#include "cpu/generic/linear_vector.hpp"
#include "cpu/generic/row_panels.hpp"
#include "cpu/pairwise_driver.hpp"
#include "octavo/float8.hpp"
#include "octavo/linear.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

constexpr int kTallestTile = kLanes == 16 ? 8 : kLanes == 8 ? 6 : 4;  // sums and row addresses stay in registers

// In place, to the nearest BF16.
void round_to_bf16(float* values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) values[i] = decode_bf16(encode_bf16(values[i]));
}

// c [rows, vectors * kLanes] = a [rows][depth], `step` apart, times w [vectors][depth][kLanes]
template <int rows, int vectors>
[[gnu::noinline]] void multiply(const float* const* a, std::int64_t step, const float* w, std::int64_t depth, float* c,
                                std::int64_t stride) {
  Vec sums[rows][vectors] = {};
  for (std::int64_t k = 0; k < depth; ++k) {
    Vec columns[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) columns[v] = load(w + (v * depth + k) * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sums[r][v] += a[r][k * step] * columns[v];
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store(c + r * stride + v * kLanes, sums[r][v]);
}

template <int vectors, int rows = kTallestTile>
void multiply(std::int64_t height, const float* const* a, std::int64_t step, const float* w, std::int64_t depth,
              float* c, std::int64_t stride) {
  if (height == rows) return multiply<rows, vectors>(a, step, w, depth, c, stride);
  if constexpr (rows > 1) multiply<vectors, rows - 1>(height, a, step, w, depth, c, stride);
}

template <Numerics numerics>
class Pairwise {
 public:
  static constexpr std::int64_t kLanes = OCTAVO_ISA_NAMESPACE::kLanes, kTallest = kTallestTile;

  explicit Pairwise(const PairwiseArgs& args)
      : args_(args), depth_(args.depth()), vectors_((args.y.rows + kLanes - 1) / kLanes) {
    const auto bytes = [](std::int64_t count) { return static_cast<std::size_t>(count) * sizeof(float); };
    panels_ = static_cast<float*>(scratch(kYPanels, bytes(vectors_ * depth_ * kLanes)));
    const bool as_it_is = numerics == Numerics::fp32 && args.x.dtype == DType::f32 && args.x_pairs == Pairs::all;
    use_panels_ = !as_it_is && args.is_symmetric();
    rows_ = as_it_is || use_panels_ ? nullptr : static_cast<float*>(scratch(kXRows, bytes(args.rows() * depth_)));
  }

  void load(std::int64_t b, Range rows) {
    pack(b);
    if (rows_ == nullptr) {
      x_ = use_panels_ ? nullptr : row_of<float>(args_.x, b, 0);
    } else if (args_.x_pairs == Pairs::all) {
      args_.x.dtype == DType::f32 ? round_rows<float>(args_.x, b, rows) : round_rows<std::uint16_t>(args_.x, b, rows);
    } else {
      const auto decode = [](auto v) { return as_float(v); };
      round_rows<float>(
          args_.x.dtype == DType::f32 ? expanded<float>(args_, b, decode) : expanded<std::uint16_t>(args_, b, decode),
          0, rows);
    }
  }

  void multiply(std::int64_t first, std::int64_t last, Range vectors, float* c, std::int64_t stride) const {
    const float* a[kTallestTile];
    for (std::int64_t i = first; i < last; ++i) {
      a[i - first] = rows_ != nullptr ? rows_ + i * depth_
                     : use_panels_    ? panels_ + i / kLanes * depth_ * kLanes + i % kLanes
                                      : x_ + i * args_.x.row_stride;
    }
    const std::int64_t step = rows_ != nullptr ? 1 : use_panels_ ? kLanes : args_.x.col_stride;
    for (std::int64_t v = vectors.begin; v < vectors.end; v += 2) {
      const float* w = panels_ + v * depth_ * kLanes;
      if (v + 1 < vectors.end)
        OCTAVO_ISA_NAMESPACE::multiply<2>(last - first, a, step, w, depth_, c + v * kLanes, stride);
      else
        OCTAVO_ISA_NAMESPACE::multiply<1>(last - first, a, step, w, depth_, c + v * kLanes, stride);
    }
  }

  void write(const float* c, std::int64_t n, char* out) const {
    if (args_.out_dtype == DType::f32) {
      copy(c, n, reinterpret_cast<float*>(out));
    } else {
      copy(c, n, reinterpret_cast<std::uint16_t*>(out));
    }
  }

 private:
  template <class T>
  static void copy(const float* c, std::int64_t n, T* out) {
    std::int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(out + i, OCTAVO_ISA_NAMESPACE::load(c + i));
    for (; i < n; ++i) {
      if constexpr (sizeof(T) == 4)
        out[i] = c[i];
      else
        out[i] = encode_bf16(c[i]);
    }
  }

  void pack(std::int64_t b) const {
    const BatchView& y = args_.y;
    for (std::int64_t v = 0; v < vectors_; ++v) {
      const std::int64_t first = v * kLanes, count = y.rows - first;
      float* out = panels_ + first * depth_;
      if (count < kLanes) std::memset(out, 0, static_cast<std::size_t>(depth_ * kLanes) * sizeof(float));
      const Range lanes = {0, count < kLanes ? count : kLanes};
      if (y.dtype == DType::f32) {
        pack_lanes<false>(row_of<float>(y, b, first), y.row_stride, y.col_stride, lanes, depth_, out);
      } else {
        pack_lanes<false>(row_of<std::uint16_t>(y, b, first), y.row_stride, y.col_stride, lanes, depth_, out);
      }
    }
    if (numerics == Numerics::bf16 && y.dtype == DType::f32) round_to_bf16(panels_, vectors_ * kLanes * depth_);
  }

  template <class T>
  void round_rows(const BatchView& x, std::int64_t b, Range rows) const {
    for (std::int64_t i = rows.begin; i < rows.end; ++i) {
      const T* from = row_of<T>(x, b, i);
      float* to = rows_ + i * depth_;
      if (x.col_stride == 1) {
        for (std::int64_t k = 0; k < depth_; ++k) to[k] = as_float(from[k]);
      } else {
        for (std::int64_t k = 0; k < depth_; ++k) to[k] = as_float(from[k * x.col_stride]);
      }
      if (numerics == Numerics::bf16 && sizeof(T) == 4) round_to_bf16(to, depth_);
    }
  }

  const PairwiseArgs& args_;
  const std::int64_t depth_, vectors_;
  float* panels_;          // y [vectors][depth][kLanes]
  float* rows_ = nullptr;  // x [rows, depth] as the class takes it; null: x's own memory or the panels
  bool use_panels_;        // x is y
  const float* x_ = nullptr;
};

}  // namespace

Status pairwise_dots_fp32(const PairwiseArgs& args) { return run_pairwise<Pairwise<Numerics::fp32>>(args); }
Status pairwise_dots_bf16(const PairwiseArgs& args) { return run_pairwise<Pairwise<Numerics::bf16>>(args); }

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
