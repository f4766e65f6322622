// What follows the product, in one pass over each row: bias, residual, norm, activation, and the output as FP32, BF16
// or eight-bit codes with the row's scale. A row that fits into its threads' registers (8,192 columns) is read once and
// written once; the rest of a longer one lies in z between the steps. A product in BF16 is never written, which would
// round it again: what does not fit is computed again from it.
#include <type_traits>

#include "activation.hpp"
#include "device/device.hpp"
#include "device/launch.cuh"
#include "device/row_groups.cuh"
#include "kernels.hpp"
#include "quantize/codes.cuh"

namespace octavo::cuda {
namespace {

// Z float: the product. BF16: what the norm sees, so that bias, saved and a residual before the norm are null.
template <class Z>
struct Rows {
  Z* z;
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
  std::int64_t y_distance;  // from layer to layer of a series, one a y of the grid; its vectors are `cols` apart
};

// Of the epilogue, those of this block's layer of a series.
template <class Z>
__device__ const float* vector_of_layer(const Rows<Z>& a, const float* first) {
  return first + static_cast<std::int64_t>(blockIdx.y) * a.cols;
}

// Which row of the residual a row adds. One outside is not read: the row becomes NaN.
struct ResidualRow {
  std::int64_t index;
  bool outside;
};
template <class Z>
__device__ ResidualRow residual_row(const Rows<Z>& a, std::int64_t row) {
  if (a.residual_rows == nullptr) return {row, false};
  const std::int64_t named = a.residual_rows[row];
  const bool outside = static_cast<std::uint64_t>(named) >= static_cast<std::uint64_t>(a.residual_count);
  return {outside ? 0 : named, outside};
}

// z + bias [+ residual], which is what the norm sees.
template <int kLanes, int kKept>
__device__ void prepare(const Rows<float>& a, std::int64_t row, const ResidualRow& residual,
                        RowSpan<float, kLanes, kKept>& span, bool aligned) {
  const bool before = a.residual.data != nullptr && a.residual_before;
  if (a.bias == nullptr && !before && a.saved.data == nullptr) return;
  span.update([&](int at, int count, float (&v)[kColumns]) {
    float other[kColumns];
    if (a.bias != nullptr) {
      load_columns(vector_of_layer(a, a.bias) + at, count, aligned && a.vectors_aligned, other);
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

template <class Z, int kLanes, int kKept>
__device__ Moments moments_of(const Rows<Z>& a, RowSpan<Z, kLanes, kKept>& span, float columns) {
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
template <class Z>
__device__ void finish(const Rows<Z>& a, const ResidualRow& residual, const Moments& m, int at, int count, bool aligned,
                       float (&v)[kColumns]) {
  float other[kColumns];
#pragma unroll
  for (int j = 0; j < kColumns; ++j) v[j] = (v[j] - m.mean) * m.inverse;
  if (a.norm_weight != nullptr) {
    load_columns(vector_of_layer(a, a.norm_weight) + at, count, aligned && a.vectors_aligned, other);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) v[j] *= other[j];
  }
  if (a.norm_bias != nullptr) {
    load_columns(vector_of_layer(a, a.norm_bias) + at, count, aligned && a.vectors_aligned, other);
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

// The row's scale, written, and what its values are multiplied by.
template <int kLanes, class Z>
__device__ float scale_row(const Rows<Z>& a, std::int64_t row, bool is_row, const Magnitude& magnitude) {
  RowScale s = row_scale(__uint_as_float(max_group<kLanes>(magnitude.largest)), a.format, false);
  if (a.format == DType::i8 && max_group<kLanes>(magnitude.nan) != 0) s.scale = __uint_as_float(0x7fc00000u);
  if (is_row && threadIdx.x % kLanes == 0) a.scale[row] = s.scale;
  return s.multiplier;
}

template <class Z>
__device__ void encode_row(const Rows<Z>& a, std::int64_t row, float multiplier, int at, int count,
                           float (&v)[kColumns]) {
  store_codes(a.codes + row * a.codes_ld + at, encode_columns(v, multiplier, a.format), count,
              a.codes_aligned && at % kColumns == 0);
}

constexpr int kWarpColumns = 32 * kColumns;  // that a warp has at once

// Codes behind a norm in blocks of kWarpColumns: every step of a warp is one block, with statistics of the warp's own,
// and the row stays in the registers (cols <= kLanes * kKept * kColumns) until its scale is known.
template <class Z, int kLanes, int kKept>
__global__ void __launch_bounds__(kRowThreads, 2) finish_blocks_to_codes(const __grid_constant__ Rows<Z> a) {
  wait_for_previous_kernels();
  const std::int64_t group = static_cast<std::int64_t>(blockIdx.x) * (kRowThreads / kLanes) + threadIdx.x / kLanes;
  const bool is_row = group < a.rows;  // the warp's last lanes may have none, and reduce along
  const std::int64_t row = is_row ? group : a.rows - 1;
  const ResidualRow residual = residual_row(a, row);
  RowSpan<Z, kLanes, kKept> span{a.z + row * a.ld, 0, is_row ? a.cols : 0, a.z_aligned, {}};
  span.load();
  if constexpr (std::is_same_v<Z, float>) prepare<kLanes, kKept>(a, row, residual, span, true);
  Magnitude magnitude;
#pragma unroll
  for (int step = 0; step < kKept; ++step) {
    float (&v)[kColumns] = span.kept[step];
    const int at = span.column(step), count = span.count(at), block = a.cols - at / kWarpColumns * kWarpColumns;
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) squares = j < count ? fmaf(v[j], v[j], squares) : squares;
    const float columns = static_cast<float>(block < kWarpColumns ? block : kWarpColumns);
    const Moments m{0.0f, 1.0f / sqrtf(sum_group<32>(squares) / columns + a.eps)};
    if (count <= 0) continue;
    finish(a, residual, m, at, count, true, v);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      v[j] = j < count ? v[j] : 0.0f;
      magnitude.add(v[j]);
    }
  }
  const float multiplier = scale_row<kLanes>(a, row, is_row, magnitude);
  span.each([&](int at, int count, float (&v)[kColumns]) { encode_row(a, row, multiplier, at, count, v); });
}

template <class Z, int kLanes, int kKept>
__global__ void __launch_bounds__(kRowThreads, 2) finish_rows(const __grid_constant__ Rows<Z> a) {
  wait_for_previous_kernels();
  constexpr bool kExact = std::is_same_v<Z, float>;
  const std::int64_t group = static_cast<std::int64_t>(blockIdx.x) * (kRowThreads / kLanes) + threadIdx.x / kLanes;
  const bool is_row = group < a.rows;  // the warp's last lanes may have none, and reduce along
  const std::int64_t row = is_row ? group : a.rows - 1;
  const ResidualRow residual = residual_row(a, row);
  RowSpan<Z, kLanes, kKept> span;
  span.row = a.z + (blockIdx.y * a.rows + row) * a.ld;
  const auto set_span = [&](int begin) {
    span.begin = begin;
    // Lanes without a row have no columns either: what they would write back belongs to another group.
    span.end = !is_row ? begin : a.cols - begin < a.span ? a.cols : begin + a.span;
    span.aligned = begin % kColumns == 0 && a.z_aligned;
    span.load();
  };
  // visit(statistics, whether the span starts at a multiple of kColumns), of each span of the row.
  const auto each_span = [&](auto visit) {
    int begin = 0;
    do {
      const bool aligned = begin % kColumns == 0;
      const int columns = a.cols - begin < a.span ? a.cols - begin : a.span;
      set_span(begin);
      if constexpr (kExact) prepare<kLanes, kKept>(a, row, residual, span, aligned);
      visit(moments_of<Z, kLanes, kKept>(a, span, static_cast<float>(columns)), aligned);
      begin += columns;
    } while (begin < a.cols);
  };
  if (a.codes == nullptr) {
    each_span([&](const Moments& m, bool aligned) {
      span.each([&](int at, int count, float (&v)[kColumns]) {
        finish(a, residual, m, at, count, aligned, v);
        a.y.store(row, at, count, v, blockIdx.y * a.y_distance);
      });
    });
    return;
  }
  const bool many = a.span < a.cols;
  Magnitude magnitude;
  each_span([&](const Moments& m, bool aligned) {
    const auto finished = [&](int at, int count, float (&v)[kColumns]) {
      finish(a, residual, m, at, count, aligned, v);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        v[j] = j < count ? v[j] : 0.0f;
        magnitude.add(v[j]);
      }
      if constexpr (kExact)
        if (many) store_columns(span.row + at, count, span.aligned, v);
    };
    if constexpr (kExact)
      span.update(finished);
    else
      span.each(finished);  // stays in the registers
  });
  const float multiplier = scale_row<kLanes>(a, row, is_row, magnitude);
  const auto encode = [&](int at, int count, float (&v)[kColumns]) { encode_row(a, row, multiplier, at, count, v); };
  if (!many && (kExact || a.cols <= kLanes * kKept * kColumns)) {
    span.each(encode);
  } else if constexpr (kExact) {
    // Spans cut the row elsewhere than its threads' steps do: each thread reads back what it wrote.
    for (int begin = 0; begin < a.cols; begin += a.span) {
      set_span(begin);
      span.each(encode);
    }
  } else {
    each_span([&](const Moments& m, bool aligned) {
      span.each([&](int at, int count, float (&v)[kColumns]) {
        finish(a, residual, m, at, count, aligned, v);
        encode(at, count, v);
      });
    });
  }
}

template <class Z>
Status finish(const MatrixView& z, const Epilogue& e, const MatrixView& y, cudaStream_t stream, float* y_scale,
              const Series& series) {
  constexpr bool kExact = std::is_same_v<Z, float>;
  const bool is_codes = y.dtype != DType::f32 && y.dtype != DType::bf16;
  const int cols = static_cast<int>(y.cols);
  const bool has_norm = e.norm != NormKind::none;
  const std::int64_t vector_bytes = series.count > 1 ? cols * std::int64_t{4} : 0;
  FloatMatrix out = float_matrix(y);
  out.aligned = out.aligned && series.distance * static_cast<std::int64_t>(size_of(y.dtype)) % 16 == 0;
  const Rows<Z> rows{static_cast<Z*>(z.data),
                     y.rows,
                     z.row_stride,
                     cols,
                     e.norm == NormKind::block && e.norm_block < cols ? static_cast<int>(e.norm_block) : cols,
                     float_matrix(z).aligned,
                     is_aligned(e.bias, vector_bytes) && is_aligned(e.norm_weight, vector_bytes) &&
                         is_aligned(e.norm_bias, vector_bytes),
                     kExact ? e.bias : nullptr,
                     has_norm ? e.norm_weight : nullptr,
                     has_norm ? e.norm_bias : nullptr,
                     e.norm,
                     e.last_activation(),
                     e.eps,
                     float_matrix(kExact || !e.residual_before_norm ? e.residual : MatrixView{}),
                     float_matrix(kExact ? e.saved : MatrixView{}),
                     out,
                     e.residual_before_norm,
                     e.residual_rows,
                     e.residual.rows,
                     is_codes ? static_cast<std::uint8_t*>(y.data) : nullptr,
                     y.row_stride,
                     reinterpret_cast<std::uintptr_t>(y.data) % 8 == 0 && (y.rows == 1 || y.row_stride % 8 == 0),
                     y.dtype,
                     y_scale,
                     series.distance};
  if (is_codes && rows.span == kWarpColumns && cols > kWarpColumns && cols <= kRowThreads * 4 * kColumns) {
    const auto blocks = [&]<int kLanes>() {
      return launch("finish_linear", finish_blocks_to_codes<Z, kLanes, 4>, dim3(row_blocks<kLanes>(rows.rows)),
                    kRowThreads, 0, stream, rows);
    };
    return cols <= 4 * kWarpColumns ? blocks.template operator()<32>() : blocks.template operator()<kRowThreads>();
  }
  return with_row_groups(rows.span, [&]<int kLanes, int kKept>() {
    const dim3 grid(row_blocks<kLanes>(rows.rows), static_cast<unsigned>(series.count));
    return launch("finish_linear", finish_rows<Z, kLanes, kKept>, grid, kRowThreads, 0, stream, rows);
  });
}

}  // namespace

Status finish_linear(const MatrixView& z, const Epilogue& epilogue, const MatrixView& y, cudaStream_t stream,
                     float* y_scale, const Series& series) {
  if (y.rows == 0 || y.cols == 0) return {};
  if (y.rows > kMostRows || y.cols > kMostColumns)
    return Status::unsupported("linear: the CUDA epilogue takes up to 2^31 - 1 rows and 2^30 columns; split the batch");
  return z.dtype == DType::f32 ? finish<float>(z, epilogue, y, stream, y_scale, series)
                               : finish<__nv_bfloat16>(z, epilogue, y, stream, y_scale, series);
}

}  // namespace octavo::cuda
