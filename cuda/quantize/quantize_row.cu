// Rows to eight-bit codes and one scale a row, read once where a row fits into its threads' registers.
#include "device/device.hpp"
#include "device/launch.cuh"
#include "device/row_groups.cuh"
#include "kernels.hpp"
#include "quantize/codes.cuh"

namespace octavo::cuda {
namespace {

struct Rows {
  const void* x;
  std::int64_t rows, stride, distance;  // distance: from matrix to matrix of a series, one a y of the grid
  int cols, ld;                         // codes' rows are ld bytes apart, zeros from cols on
  bool x_aligned, codes_aligned, pow2;
  DType format;
  const float* column_factor;  // x is multiplied by it first; null: by nothing
  std::uint8_t* codes;
  float* scale;
};

template <class In, int kLanes, int kKept>
__global__ void __launch_bounds__(kRowThreads) quantize_rows(const __grid_constant__ Rows a) {
  wait_for_previous_kernels();
  const unsigned group = blockIdx.x * (kRowThreads / kLanes) + threadIdx.x / kLanes;
  const bool is_row = group < a.rows;  // the warp's last lanes may have none, and reduce along
  const unsigned row = is_row ? group : static_cast<unsigned>(a.rows) - 1;  // 64 bits would spill
  RowSpan<const In, kLanes, kKept> span{
      static_cast<const In*>(a.x) + blockIdx.y * a.distance + row * a.stride, 0, a.cols, a.x_aligned, {}};
  span.load();
  const auto scaled = [&](int at, int count, float (&v)[kColumns]) {
    if (a.column_factor == nullptr) return;
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      if (j < count) v[j] *= a.column_factor[at + j];
  };
  Magnitude magnitude;
  span.each([&](int at, int count, float (&v)[kColumns]) {
    float w[kColumns];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) w[j] = v[j];
    scaled(at, count, w);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) magnitude.add(w[j]);  // columns outside are 0
  });
  RowScale s = row_scale(__uint_as_float(max_group<kLanes>(magnitude.largest)), a.format, a.pow2);
  if (a.format == DType::i8 && max_group<kLanes>(magnitude.nan) != 0) s.scale = __uint_as_float(0x7fc00000u);
  if (!is_row) return;
  const std::int64_t out_row = blockIdx.y * a.rows + row;
  if (threadIdx.x % kLanes == 0) a.scale[out_row] = s.scale;
  std::uint8_t* codes = a.codes + out_row * a.ld;
  span.each([&](int at, int count, float (&v)[kColumns]) {
    float w[kColumns];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) w[j] = v[j];
    scaled(at, count, w);
    store_codes(codes + at, encode_columns(w, s.multiplier, a.format), count, a.codes_aligned);
  });
  for (int at = a.cols + static_cast<int>(threadIdx.x) % kLanes; at < a.ld; at += kLanes) codes[at] = 0;
}

template <class In>
Status run(const Rows& rows, const Series& series, cudaStream_t stream) {
  return with_row_groups(rows.cols, [&]<int kLanes, int kKept>() {
    const dim3 grid(row_blocks<kLanes>(rows.rows), static_cast<unsigned>(series.count));
    return launch("quantize_row", quantize_rows<In, kLanes, kKept>, grid, kRowThreads, 0, stream, rows);
  });
}

}  // namespace

Status quantize_row_padded(const QuantizeArgs& args, std::int64_t ld, const float* column_factor,
                           const Series& series) {
  if (Status status = validate(args); !status.ok()) return status;
  if (args.scaling != Scaling::row)
    return Status::unsupported("quantize: this CUDA kernel has one scale a row; use scaling 'row'");
  if (args.x.rows == 0) return {};
  if (args.x.rows > kMostRows || ld > kMostColumns)
    return Status::unsupported("quantize: the CUDA kernel takes up to 2^31 - 1 rows and 2^30 columns; split x");
  if (Status s = expect_aligned("quantize", {{"x", args.x}, {"scales", args.scale, 4}}); !s.ok()) return s;
  const auto element = static_cast<std::int64_t>(size_of(args.x.dtype));
  const Rows rows{
      args.x.data,
      args.x.rows,
      args.x.row_stride,
      series.distance,
      static_cast<int>(args.x.cols),
      static_cast<int>(ld),
      is_aligned(args.x.data, args.x.rows > 1 ? args.x.row_stride * element : 0) && series.distance * element % 16 == 0,
      reinterpret_cast<std::uintptr_t>(args.codes) % 8 == 0 && ld % 8 == 0,
      args.pow2_scale,
      args.format,
      column_factor,
      static_cast<std::uint8_t*>(args.codes),
      args.scale};
  const DeviceGuard guard({args.x.data, args.scale});
  const auto stream = static_cast<cudaStream_t>(args.stream);
  switch (args.x.dtype) {
    case DType::f32: return run<float>(rows, series, stream);
    case DType::bf16: return run<__nv_bfloat16>(rows, series, stream);
    default: return run<__half>(rows, series, stream);
  }
}

Status quantize_row(const QuantizeArgs& args) { return quantize_row_padded(args, args.x.cols); }

}  // namespace octavo::cuda
