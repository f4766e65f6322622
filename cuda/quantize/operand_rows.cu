// Rows as a GEMM reads its operands: copied, or in BF16 out of FP32 and of scaled codes, zeros behind them up to a
// pitch, one block a row. And scales of blocks, transposed.
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "device/launch.cuh"
#include "kernels.hpp"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

__device__ float value(float x) { return x; }
__device__ float value(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float value(__nv_fp8_e4m3 x) { return static_cast<float>(x); }
__device__ float value(signed char x) { return static_cast<float>(x); }

// Scales of codes: none, one a row, or one per 128 x 128, `across` of them side by side.
struct CodeScales {
  const float* data;
  std::int64_t across;  // 0: one a row

  __device__ float at(std::int64_t row, std::int64_t column) const {
    if (data == nullptr) return 1.0f;
    return across == 0 ? data[row] : data[row / kScaleBlock * across + column / kScaleBlock];
  }
};

template <class In>
__global__ void __launch_bounds__(kThreads)
    rows_to_bf16(const In* x, std::int64_t cols, std::int64_t stride, std::int64_t distance, CodeScales scales,
                 __nv_bfloat16* out, std::int64_t ld) {
  wait_for_previous_kernels();
  const std::int64_t row = blockIdx.x;
  x += blockIdx.y * distance;
  out += static_cast<std::int64_t>(blockIdx.y) * gridDim.x * ld;
  for (std::int64_t i = threadIdx.x; i < ld; i += kThreads)
    out[row * ld + i] = __float2bfloat16_rn(i < cols ? value(x[row * stride + i]) * scales.at(row, i) : 0.0f);
}

__global__ void __launch_bounds__(kThreads)
    transpose_floats(const float* from, std::int64_t rows, std::int64_t cols, float* to, std::int64_t ld) {
  wait_for_previous_kernels();
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= rows) return;
  for (std::int64_t c = 0; c < cols; ++c) to[c * ld + row] = from[row * cols + c];
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    copy_padded(const T* x, std::int64_t cols, std::int64_t stride, std::int64_t distance, T* out, std::int64_t ld) {
  wait_for_previous_kernels();
  const std::int64_t row = blockIdx.x;
  x += blockIdx.y * distance;
  out += static_cast<std::int64_t>(blockIdx.y) * gridDim.x * ld;
  for (std::int64_t i = threadIdx.x; i < ld; i += kThreads) out[row * ld + i] = i < cols ? x[row * stride + i] : T{0};
}

dim3 block_a_row(const MatrixView& x, const Series& series) {
  return {static_cast<unsigned>(x.rows), static_cast<unsigned>(series.count)};
}

template <class T>
Status copy(const MatrixView& x, void* out, std::int64_t ld, cudaStream_t stream, const Series& series) {
  return launch("copy_rows", copy_padded<T>, block_a_row(x, series), kThreads, 0, stream, static_cast<const T*>(x.data),
                x.cols, x.row_stride, series.distance, static_cast<T*>(out), ld);
}

template <class In>
Status convert(const MatrixView& x, const CodeScales& scales, void* out, std::int64_t ld, cudaStream_t stream,
               const Series& series) {
  return launch("to_bf16", rows_to_bf16<In>, block_a_row(x, series), kThreads, 0, stream,
                static_cast<const In*>(x.data), x.cols, x.row_stride, series.distance, scales,
                static_cast<__nv_bfloat16*>(out), ld);
}

}  // namespace

Status to_bf16(const MatrixView& x, const float* scale, void* out, std::int64_t ld, cudaStream_t stream,
               Scaling scaling, const Series& series) {
  const CodeScales scales{scale, scaling == Scaling::row ? 0 : scale_blocks(x.cols)};
  if (x.rows == 0) return {};
  if (x.rows > 0x7fffffff) return Status::unsupported("to_bf16: takes up to 2^31 - 1 rows; split the batch");
  switch (x.dtype) {
    case DType::f32: return convert<float>(x, scales, out, ld, stream, series);
    case DType::bf16: return convert<__nv_bfloat16>(x, scales, out, ld, stream, series);
    case DType::e4m3: return convert<__nv_fp8_e4m3>(x, scales, out, ld, stream, series);
    case DType::i8: return convert<signed char>(x, scales, out, ld, stream, series);
    default: return Status::unsupported("to_bf16: reads float32, bfloat16, E4M3 and INT8");
  }
}

Status transpose_scales(const float* scale, std::int64_t rows, std::int64_t blocks, float* out, std::int64_t ld,
                        cudaStream_t stream) {
  const auto groups = static_cast<unsigned>((rows + kThreads - 1) / kThreads);
  return launch("transpose_scales", transpose_floats, dim3(groups), kThreads, 0, stream, scale, rows, blocks, out, ld);
}

Status copy_rows(const MatrixView& x, void* out, std::int64_t ld, cudaStream_t stream, const Series& series) {
  if (x.rows == 0) return {};
  if (x.rows > 0x7fffffff) return Status::unsupported("copy_rows: takes up to 2^31 - 1 rows; split the batch");
  switch (size_of(x.dtype)) {
    case 1: return copy<std::uint8_t>(x, out, ld, stream, series);
    case 2: return copy<std::uint16_t>(x, out, ld, stream, series);
    default: return copy<float>(x, out, ld, stream, series);
  }
}

}  // namespace octavo::cuda
