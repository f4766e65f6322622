// Products of every pair of rows, operands rounded to BF16, FP32 sums: vdpbf16ps on pairs of 16 columns.
#include "cpu/avx512/linear_tile.hpp"
#include "cpu/avx512/transpose.hpp"
#include "cpu/pairwise_driver.hpp"

namespace octavo::avx512_kernels {
namespace {

constexpr int kTallestTile = 8;      // more rows would not leave their addresses in registers
constexpr std::int64_t kGroup = 64;  // bytes: one pair of each of a vector's 16 columns

inline __mmask32 first_words(std::int64_t count) {
  return count >= 32 ? 0xffffffffu : count <= 0 ? 0u : (1u << count) - 1;
}

// 32 elements of a row in BF16, zero from `left` on.
inline __m512i load_bf16(const float* p, std::int64_t left) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(first_lanes(left - 16), p + 16),
                                                       _mm512_maskz_loadu_ps(first_lanes(left), p)));
}
inline __m512i load_bf16(const std::uint16_t* p, std::int64_t left) {
  return _mm512_maskz_loadu_epi16(first_words(left), p);
}
// 16 of them.
inline __m256i load_half(const float* p, __mmask16 mask) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, p)));
}
inline __m256i load_half(const std::uint16_t* p, __mmask16 mask) { return _mm256_maskz_loadu_epi16(mask, p); }

// One vector's columns, the first `count` rows from `rows` on: out [groups][16 pairs], zero beyond.
template <class T>
void pack_vector(const T* rows, const BatchView& view, std::int64_t count, std::int64_t depth, char* out) {
  const std::int64_t groups = (depth + 1) / 2;
  if (view.col_stride != 1 && depth > 1) {  // then rows are neighbours
    const __mmask16 mask = first_lanes(count);
    for (std::int64_t g = 0; g < groups; ++g) {
      const T* column = rows + 2 * g * view.col_stride;
      const __m512i low = _mm512_cvtepu16_epi32(load_half(column, mask));
      const __m512i high =
          2 * g + 1 < depth ? _mm512_cvtepu16_epi32(load_half(column + view.col_stride, mask)) : __m512i{};
      _mm512_storeu_si512(out + g * kGroup, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
    return;
  }
  for (std::int64_t k = 0; k < depth; k += 32) {
    __m512i block[16];
    for (int r = 0; r < 16; ++r)
      block[r] = r < count ? load_bf16(rows + r * view.row_stride + k, depth - k) : __m512i{};
    transpose(block);
    const std::int64_t left = groups - k / 2;
#pragma GCC unroll 16
    for (int g = 0; g < 16; ++g)
      if (g < left) _mm512_storeu_si512(out + (k / 2 + g) * kGroup, block[g]);
  }
}

// c [rows, vectors * 16] = a [rows][groups], `step` bytes apart, times w [vectors][groups][16 pairs]
template <int rows, int vectors>
[[gnu::noinline]] void multiply(const char* const* from, std::int64_t step, const char* w, std::int64_t groups,
                                float* c, std::int64_t stride) {
  __m512 sums[rows][vectors];
  const char* a[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    a[r] = from[r];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sums[r][v] = _mm512_setzero_ps();
  }
  const std::int64_t panel = groups * kGroup;
  for (std::int64_t g = 0, at = 0; g < groups; ++g, at += step, w += kGroup) {
    __m512i columns[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) columns[v] = _mm512_loadu_si512(w + v * panel);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const __m512i x = _mm512_set1_epi32(*reinterpret_cast<const UnalignedGroup*>(a[r] + at));
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) Bf16Dot::add(sums[r][v], x, columns[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) _mm512_storeu_ps(c + r * stride + v * 16, sums[r][v]);
}

template <int vectors, int rows = kTallestTile>
void multiply(std::int64_t height, const char* const* a, std::int64_t step, const char* w, std::int64_t groups,
              float* c, std::int64_t stride) {
  if (height == rows) return multiply<rows, vectors>(a, step, w, groups, c, stride);
  if constexpr (rows > 1) multiply<vectors, rows - 1>(height, a, step, w, groups, c, stride);
}

class Pairwise {
 public:
  static constexpr std::int64_t kLanes = 16, kTallest = kTallestTile;

  explicit Pairwise(const PairwiseArgs& args)
      : args_(args), depth_(args.depth()), groups_((depth_ + 1) / 2), row_bytes_((depth_ * 2 + 63) / 64 * 64) {
    const auto panels = [&](std::int64_t rows) {
      return static_cast<std::size_t>((rows + 15) / 16 * groups_ * kGroup);
    };
    y_panels_ = static_cast<char*>(scratch(kYPanels, panels(args.y.rows)));
    if (args.x_pairs == Pairs::all && args.is_symmetric()) {
      x_panels_ = y_panels_;
    } else if (args.x_pairs == Pairs::all && args.x.col_stride != 1 && args.x.cols > 1) {
      x_panels_ = static_cast<char*>(scratch(kXRows, panels(args.x.rows)));
    } else if (args.x_pairs != Pairs::all || args.x.dtype == DType::f32 || depth_ % 2 != 0) {
      x_rows_ = static_cast<char*>(scratch(kXRows, static_cast<std::size_t>(args.rows() * row_bytes_)));
    }
  }

  void load(std::int64_t b, Range rows) {
    pack(args_.y, b, y_panels_);
    if (x_panels_ != nullptr) {
      if (x_panels_ != y_panels_) pack(args_.x, b, x_panels_);
    } else if (x_rows_ == nullptr) {
      x_ = reinterpret_cast<const char*>(row_of<std::uint16_t>(args_.x, b, 0));
    } else if (args_.x_pairs != Pairs::all) {
      const BatchView full = args_.x.dtype == DType::f32
                                 ? expanded<float>(args_, b, [](float v) { return v; })
                                 : expanded<std::uint16_t>(args_, b, [](std::uint16_t v) { return decode_bf16(v); });
      round_rows<float>(full, 0, rows);
    } else if (args_.x.dtype == DType::f32) {
      round_rows<float>(args_.x, b, rows);
    } else {
      round_rows<std::uint16_t>(args_.x, b, rows);
    }
  }

  void multiply(std::int64_t first, std::int64_t last, Range vectors, float* c, std::int64_t stride) const {
    const char* a[kTallestTile];
    for (std::int64_t i = first; i < last; ++i)
      a[i - first] = x_panels_ != nullptr ? x_panels_ + i / 16 * groups_ * kGroup + i % 16 * 4
                     : x_rows_ != nullptr ? x_rows_ + i * row_bytes_
                                          : x_ + i * args_.x.row_stride * 2;
    const std::int64_t step = x_panels_ != nullptr ? kGroup : 4;
    for (std::int64_t v = vectors.begin; v < vectors.end; v += 2) {
      const char* w = y_panels_ + v * groups_ * kGroup;
      if (v + 1 < vectors.end)
        avx512_kernels::multiply<2>(last - first, a, step, w, groups_, c + v * 16, stride);
      else
        avx512_kernels::multiply<1>(last - first, a, step, w, groups_, c + v * 16, stride);
    }
  }

  void write(const float* c, std::int64_t n, char* out) const {
    for (std::int64_t i = 0; i < n; i += 16) {
      const __mmask16 mask = first_lanes(n - i);
      const __m512 v = _mm512_maskz_loadu_ps(mask, c + i);
      if (args_.out_dtype == DType::f32) {
        _mm512_mask_storeu_ps(out + i * 4, mask, v);
      } else {
        _mm256_mask_storeu_epi16(out + i * 2, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
      }
    }
  }

 private:
  static float decode_bf16(std::uint16_t bits) {
    return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
  }

  void pack(const BatchView& view, std::int64_t b, char* out) const {
    for (std::int64_t first = 0; first < view.rows; first += 16) {
      char* panel = out + first / 16 * groups_ * kGroup;
      if (view.dtype == DType::f32) {
        pack_vector(row_of<float>(view, b, first), view, view.rows - first, depth_, panel);
      } else {
        pack_vector(row_of<std::uint16_t>(view, b, first), view, view.rows - first, depth_, panel);
      }
    }
  }

  template <class T>
  void round_rows(const BatchView& x, std::int64_t b, Range rows) const {
    for (std::int64_t i = rows.begin; i < rows.end; ++i) {
      const T* from = row_of<T>(x, b, i);
      for (std::int64_t k = 0; k < depth_; k += 32)
        _mm512_storeu_si512(x_rows_ + i * row_bytes_ + k * 2, load_bf16(from + k, depth_ - k));
    }
  }

  const PairwiseArgs& args_;
  const std::int64_t depth_, groups_, row_bytes_;
  char* y_panels_;            // y [vectors][groups][16 pairs]
  char* x_panels_ = nullptr;  // x likewise, where it is y or its rows are neighbours
  char* x_rows_ = nullptr;    // x [rows] in BF16, where it is not already; both null: x's own memory
  const char* x_ = nullptr;
};

}  // namespace

Status pairwise_dots_bf16(const PairwiseArgs& args) { return run_pairwise<Pairwise>(args); }

}  // namespace octavo::avx512_kernels
