// What follows the product, in one pass over each row: bias, residual, norm, activation, and the output as FP32, BF16
// or eight-bit codes with the row's scale. A row that fits into its threads' registers (8,192 columns) is read once and
// written once; the rest of a longer one lies in z between the steps.
#include "activation.hpp"
#include "device/device.hpp"
#include "device/launch.cuh"
#include "device/row_groups.cuh"
#include "kernels.hpp"
#include "quantize/codes.cuh"

namespace octavo::cuda {
namespace {

struct Rows {
  float* z;
  std::int64_t rows, ld;
  int cols, span;                   // span: columns that share a mean and a mean square
  bool z_aligned, vectors_aligned;  // vectors: bias, norm weight, norm bias
  const float *bias, *norm_weight, *norm_bias;
  NormKind norm;
  Activation activation;
  float eps;
  FloatMatrix residual, saved, y;
  bool residual_before;
  const std::int64_t* residual_rows;  // null: every row has its own
  std::int64_t residual_count;
  std::uint8_t* codes;  // null: y is written
  std::int64_t codes_ld;
  bool codes_aligned;
  DType format;
  float* scale;
};

template <int kLanes, int kKept>
using Span = RowSpan<float, kLanes, kKept>;

// Which row of the residual a row adds. One outside is not read: the row becomes NaN.
struct ResidualRow {
  std::int64_t index;
  bool outside;
};
__device__ inline ResidualRow residual_row(const Rows& a, std::int64_t row) {
  if (a.residual_rows == nullptr) return {row, false};
  const std::int64_t named = a.residual_rows[row];
  const bool outside = static_cast<std::uint64_t>(named) >= static_cast<std::uint64_t>(a.residual_count);
  return {outside ? 0 : named, outside};
}

// z + bias [+ residual], which is what the norm sees.
template <int kLanes, int kKept>
__device__ void prepare(const Rows& a, std::int64_t row, const ResidualRow& residual, Span<kLanes, kKept>& span,
                        bool aligned) {
  const bool before = a.residual.data != nullptr && a.residual_before;
  if (a.bias == nullptr && !before && a.saved.data == nullptr) return;
  span.update([&](int at, int count, float (&v)[kColumns]) {
    float other[kColumns];
    if (a.bias != nullptr) {
      load_columns(a.bias + at, count, aligned && a.vectors_aligned, other);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) v[j] += other[j];
    }
    if (before) {
      a.residual.load(residual.index, at, count, other);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) v[j] += other[j];
    }
    if (a.saved.data != nullptr) a.saved.store(row, at, count, v);
  });
}

struct Moments {
  float mean = 0.0f, inverse = 1.0f;  // inverse: of the root of the mean square
};

template <int kLanes, int kKept>
__device__ Moments moments_of(const Rows& a, Span<kLanes, kKept>& span, float columns) {
  Moments m;
  if (a.norm == NormKind::none) return m;
  if (a.norm == NormKind::layer) {
    float sum = 0.0f;
    span.each([&](int, int count, float (&v)[kColumns]) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) sum += j < count ? v[j] : 0.0f;
    });
    m.mean = sum_group<kLanes>(sum) / columns;
  }
  float squares = 0.0f;
  span.each([&](int, int count, float (&v)[kColumns]) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const float d = j < count ? v[j] - m.mean : 0.0f;
      squares = fmaf(d, d, squares);
    }
  });
  m.inverse = 1.0f / sqrtf(sum_group<kLanes>(squares) / columns + a.eps);
  return m;
}

// act(norm(v)) [+ residual] of one step.
__device__ inline void finish(const Rows& a, const ResidualRow& residual, const Moments& m, int at, int count,
                              bool aligned, float (&v)[kColumns]) {
  float other[kColumns];
#pragma unroll
  for (int j = 0; j < kColumns; ++j) v[j] = (v[j] - m.mean) * m.inverse;
  if (a.norm_weight != nullptr) {
    load_columns(a.norm_weight + at, count, aligned && a.vectors_aligned, other);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) v[j] *= other[j];
  }
  if (a.norm_bias != nullptr) {
    load_columns(a.norm_bias + at, count, aligned && a.vectors_aligned, other);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) v[j] += other[j];
  }
  activate_all<kColumns>(v, a.activation);
  if (a.residual.data != nullptr && !a.residual_before) {
    a.residual.load(residual.index, at, count, other);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) v[j] += other[j];
  }
  if (residual.outside)
#pragma unroll
    for (int j = 0; j < kColumns; ++j) v[j] = __uint_as_float(0x7fc00000u);
}

template <int kLanes, int kKept>
__global__ void __launch_bounds__(kRowThreads, 2) finish_rows(const __grid_constant__ Rows a) {
  const std::int64_t group = static_cast<std::int64_t>(blockIdx.x) * (kRowThreads / kLanes) + threadIdx.x / kLanes;
  const bool is_row = group < a.rows;  // the warp's last lanes may have none, and reduce along
  const std::int64_t row = is_row ? group : a.rows - 1;
  const ResidualRow residual = residual_row(a, row);
  float* z = a.z + row * a.ld;
  const bool many = a.span < a.cols;
  Magnitude magnitude;
  Span<kLanes, kKept> span;
  int begin = 0;
  do {
    const bool aligned = begin % kColumns == 0;
    const int end = a.cols - begin < a.span ? a.cols : begin + a.span;
    span.row = z;
    span.begin = begin;
    // Lanes without a row have no columns either: what they would write back belongs to another group.
    span.end = is_row ? end : begin;
    span.aligned = aligned && a.z_aligned;
    span.load();
    prepare<kLanes, kKept>(a, row, residual, span, aligned);
    const Moments m = moments_of<kLanes, kKept>(a, span, static_cast<float>(end - begin));
    if (a.codes == nullptr) {
      span.each([&](int at, int count, float (&v)[kColumns]) {
        finish(a, residual, m, at, count, aligned, v);
        a.y.store(row, at, count, v);
      });
    } else {
      span.update([&](int at, int count, float (&v)[kColumns]) {
        finish(a, residual, m, at, count, aligned, v);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          v[j] = j < count ? v[j] : 0.0f;
          magnitude.add(v[j]);
        }
        if (many) store_columns(z + at, count, aligned && a.z_aligned, v);
      });
    }
    begin = end;
  } while (begin < a.cols);
  if (a.codes == nullptr) return;
  RowScale s = row_scale(__uint_as_float(max_group<kLanes>(magnitude.largest)), a.format, false);
  if (a.format == DType::i8 && max_group<kLanes>(magnitude.nan) != 0) s.scale = __uint_as_float(0x7fc00000u);
  if (!is_row) return;
  if (threadIdx.x % kLanes == 0) a.scale[row] = s.scale;
  const auto encode = [&](int at, int count, float (&v)[kColumns]) {
    store_codes(a.codes + row * a.codes_ld + at, encode_columns(v, s.multiplier, a.format), count,
                a.codes_aligned && at % kColumns == 0);
  };
  if (!many) {
    span.each(encode);
    return;
  }
  // Spans cut the row elsewhere than its threads' steps do: each thread reads back what it wrote.
  for (begin = 0; begin < a.cols; begin += a.span) {
    span.begin = begin;
    span.end = a.cols - begin < a.span ? a.cols : begin + a.span;
    span.aligned = begin % kColumns == 0 && a.z_aligned;
    span.load();
    span.each(encode);
  }
}

}  // namespace

Status finish_linear(float* z, std::int64_t ld, const Epilogue& e, const MatrixView& y, cudaStream_t stream,
                     float* y_scale) {
  if (y.rows == 0 || y.cols == 0) return {};
  if (y.rows > kMostRows || y.cols > kMostColumns)
    return Status::unsupported("linear: the CUDA epilogue takes up to 2^31 - 1 rows and 2^30 columns; split the batch");
  const bool is_codes = y.dtype != DType::f32 && y.dtype != DType::bf16;
  const int cols = static_cast<int>(y.cols);
  const bool has_norm = e.norm != NormKind::none;
  const Rows rows{z,
                  y.rows,
                  ld,
                  cols,
                  e.norm == NormKind::block && e.norm_block < cols ? static_cast<int>(e.norm_block) : cols,
                  is_aligned(z, y.rows > 1 ? ld * 4 : 0),
                  is_aligned(e.bias, 0) && is_aligned(e.norm_weight, 0) && is_aligned(e.norm_bias, 0),
                  e.bias,
                  has_norm ? e.norm_weight : nullptr,
                  has_norm ? e.norm_bias : nullptr,
                  e.norm,
                  e.last_activation(),
                  e.eps,
                  float_matrix(e.residual),
                  float_matrix(e.saved),
                  float_matrix(y),
                  e.residual_before_norm,
                  e.residual_rows,
                  e.residual.rows,
                  is_codes ? static_cast<std::uint8_t*>(y.data) : nullptr,
                  y.row_stride,
                  reinterpret_cast<std::uintptr_t>(y.data) % 8 == 0 && (y.rows == 1 || y.row_stride % 8 == 0),
                  y.dtype,
                  y_scale};
  return with_row_groups(rows.span, [&]<int kLanes, int kKept>() {
    return launch("finish_linear", finish_rows<kLanes, kKept>, dim3(row_blocks<kLanes>(rows.rows)), kRowThreads, 0,
                  stream, rows);
  });
}

}  // namespace octavo::cuda
