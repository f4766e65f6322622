// One matrix in two orientations: codes by rows, and codes by columns, transposed, for products that want the other
// side contiguous. A scale needs its whole row or column, so x is read twice: to measure, then to encode both.
#include "device/device.hpp"
#include "device/launch.cuh"
#include "device/row_groups.cuh"
#include "kernels.hpp"
#include "quantize/codes.cuh"

namespace octavo::cuda {
namespace {

constexpr int kTile = 64, kThreads = 256;
constexpr int kThreadsPerRow = kTile / kColumns, kRowsAtOnce = kThreads / kThreadsPerRow;  // 8, 32
constexpr int kTransposedStride = kTile + 4;  // bytes: 17 banks on, so that neighbours in a column meet in none

struct Both {
  const void* x;
  std::int64_t rows, stride;
  int cols;
  bool x_aligned;
  const float* column_factor;              // by rows only; null: none
  unsigned *row_largest, *column_largest;  // magnitude bits, zeros at first
  DType row_format, column_format;
  std::uint8_t *row_codes, *column_codes;  // null: not wanted
  std::int64_t row_ld, column_ld;
  bool row_aligned, column_aligned;
  float *row_scale, *column_scale;
};

// Eight columns of the tile's row `row`, zeros outside x.
template <class In>
__device__ void load_eight(const Both& a, std::int64_t row, int column, float (&v)[kColumns]) {
  const int count = row < a.rows ? a.cols - column : 0;
  load_columns(static_cast<const In*>(a.x) + (count > 0 ? row * a.stride + column : 0), count, a.x_aligned, v);
}

__device__ inline void scale_by_column(const Both& a, int column, float (&v)[kColumns]) {
  if (a.column_factor == nullptr) return;
#pragma unroll
  for (int j = 0; j < kColumns; ++j)
    if (column + j < a.cols) v[j] *= a.column_factor[column + j];
}

template <class In>
__global__ void __launch_bounds__(kThreads) measure_tiles(const __grid_constant__ Both a) {
  wait_for_previous_kernels();
  __shared__ unsigned largest_of_column[kTile];
  if (threadIdx.x < kTile) largest_of_column[threadIdx.x] = 0;
  __syncthreads();
  const int column = static_cast<int>(blockIdx.y) * kTile + static_cast<int>(threadIdx.x) % kThreadsPerRow * kColumns;
  unsigned largest[kColumns] = {};
#pragma unroll
  for (int step = 0; step < kTile / kRowsAtOnce; ++step) {
    const std::int64_t row =
        static_cast<std::int64_t>(blockIdx.x) * kTile + step * kRowsAtOnce + threadIdx.x / kThreadsPerRow;
    float v[kColumns];
    load_eight<In>(a, row, column, v);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      Magnitude m{largest[j]};
      m.add(v[j]);
      largest[j] = m.largest;
    }
    if (a.row_codes == nullptr) continue;
    scale_by_column(a, column, v);
    Magnitude m;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) m.add(v[j]);
    m.largest = max_group<kThreadsPerRow>(m.largest);
    if (threadIdx.x % kThreadsPerRow == 0 && row < a.rows) atomicMax(a.row_largest + row, m.largest);
  }
  if (a.column_codes == nullptr) return;
#pragma unroll
  for (int j = 0; j < kColumns; ++j)
    atomicMax(largest_of_column + static_cast<int>(threadIdx.x) % kThreadsPerRow * kColumns + j, largest[j]);
  __syncthreads();
  const int own = static_cast<int>(blockIdx.y) * kTile + static_cast<int>(threadIdx.x);
  if (threadIdx.x < kTile && own < a.cols) atomicMax(a.column_largest + own, largest_of_column[threadIdx.x]);
}

template <class In>
__global__ void __launch_bounds__(kThreads) encode_tiles(const __grid_constant__ Both a) {
  wait_for_previous_kernels();
  __shared__ __align__(4) std::uint8_t transposed[kTile * kTransposedStride];  // [column][row]
  __shared__ RowScale column_scales[kTile];
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * kTile;
  const int first_column = static_cast<int>(blockIdx.y) * kTile, thread = static_cast<int>(threadIdx.x);
  if (a.column_codes != nullptr && thread < kTile && first_column + thread < a.cols) {
    const RowScale s = row_scale(__uint_as_float(a.column_largest[first_column + thread]), a.column_format, false);
    column_scales[thread] = s;
    if (blockIdx.x == 0) a.column_scale[first_column + thread] = s.scale;
  }
  __syncthreads();
  const int in_tile = thread % kThreadsPerRow * kColumns, column = first_column + in_tile;
#pragma unroll
  for (int step = 0; step < kTile / kRowsAtOnce; ++step) {
    const int tile_row = step * kRowsAtOnce + thread / kThreadsPerRow;
    const std::int64_t row = first_row + tile_row;
    float v[kColumns];
    load_eight<In>(a, row, column, v);
    if (a.column_codes != nullptr)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const float one = column + j < a.cols ? v[j] * column_scales[in_tile + j].multiplier : 0.0f;
        transposed[(in_tile + j) * kTransposedStride + tile_row] = static_cast<std::uint8_t>(
            __nv_cvt_float_to_fp8(one, __NV_SATFINITE, a.column_format == DType::e4m3 ? __NV_E4M3 : __NV_E5M2));
      }
    if (a.row_codes == nullptr || row >= a.rows || column >= a.row_ld) continue;
    scale_by_column(a, column, v);
    const RowScale s = row_scale(__uint_as_float(a.row_largest[row]), a.row_format, false);
    if (column == 0) a.row_scale[row] = s.scale;
    const std::int64_t room = a.row_ld - column;
    store_codes(a.row_codes + row * a.row_ld + column, encode_columns(v, s.multiplier, a.row_format),
                static_cast<int>(room < kColumns ? room : kColumns), a.row_aligned);
  }
  if (a.column_codes == nullptr) return;
  __syncthreads();
  // 16 rows of x, neighbours in the transposed codes, a thread.
  const int tile_column = thread / (kTile / 16), part = thread % (kTile / 16) * 16;
  if (first_column + tile_column >= a.cols || first_row + part >= a.column_ld) return;
  const std::uint8_t* from = transposed + tile_column * kTransposedStride + part;
  std::uint8_t* to = a.column_codes + (first_column + tile_column) * a.column_ld + first_row + part;
  const std::int64_t room = a.column_ld - first_row - part;
  if (a.column_aligned && room >= 16) {
    const auto* words = reinterpret_cast<const unsigned*>(from);
    *reinterpret_cast<uint4*>(to) = {words[0], words[1], words[2], words[3]};
  } else {
    for (int i = 0; i < 16 && i < room; ++i) to[i] = from[i];
  }
}

template <class In>
Status run(const Both& both, cudaStream_t stream) {
  const auto tiles = [](std::int64_t size) { return static_cast<unsigned>((size + kTile - 1) / kTile); };
  const dim3 measured(tiles(both.rows), tiles(both.cols));
  if (Status s = launch("quantize_both", measure_tiles<In>, measured, kThreads, 0, stream, both); !s.ok()) return s;
  const std::int64_t rows = both.column_codes != nullptr && both.column_ld > both.rows ? both.column_ld : both.rows;
  const std::int64_t cols = both.row_codes != nullptr && both.row_ld > both.cols ? both.row_ld : both.cols;
  return launch("quantize_both", encode_tiles<In>, dim3(tiles(rows), tiles(cols)), kThreads, 0, stream, both);
}

}  // namespace

Status quantize_both(const QuantizeBoth& args) {
  const MatrixView& x = args.x;
  for (const DType format : {args.row_format, args.column_format})
    if (format != DType::e4m3 && format != DType::e5m2)
      return Status::invalid("quantize_both: formats are e4m3 and e5m2");
  if (x.dtype != DType::f32 && x.dtype != DType::bf16)
    return Status::invalid("quantize_both: x must be float32 or bfloat16");
  if (x.rows == 0 || x.cols == 0) return Status::invalid("quantize_both: x is empty and has no scales");
  if (x.rows > kMostRows || x.cols > kTile * 65535LL)
    return Status::unsupported("quantize_both: takes up to 2^31 - 1 rows and 4,194,240 columns; split x");
  const DeviceGuard guard(x.data);
  const auto sums = static_cast<std::size_t>(x.rows + x.cols) * sizeof(unsigned);
  StreamBuffer largest(args.stream);
  if (Status s = largest.allocate(sums); !s.ok()) return s;
  if (Status s = checked(cudaMemsetAsync(largest.as<void>(), 0, sums, args.stream), "quantize_both"); !s.ok()) return s;
  const auto row_bytes = x.rows > 1 ? x.row_stride * static_cast<std::int64_t>(size_of(x.dtype)) : 0;
  const Both both{x.data,
                  x.rows,
                  x.row_stride,
                  static_cast<int>(x.cols),
                  is_aligned(x.data, row_bytes),
                  args.column_factor,
                  largest.as<unsigned>(),
                  largest.as<unsigned>() + x.rows,
                  args.row_format,
                  args.column_format,
                  static_cast<std::uint8_t*>(args.row_codes),
                  static_cast<std::uint8_t*>(args.column_codes),
                  args.row_ld,
                  args.column_ld,
                  reinterpret_cast<std::uintptr_t>(args.row_codes) % 8 == 0 && args.row_ld % 8 == 0,
                  is_aligned(args.column_codes, args.column_ld),
                  args.row_scale,
                  args.column_scale};
  return x.dtype == DType::f32 ? run<float>(both, args.stream) : run<__nv_bfloat16>(both, args.stream);
}

}  // namespace octavo::cuda
