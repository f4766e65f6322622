// What follows the product, for any N: one block a row, FP32 throughout. Not fused into the GEMM yet.
#include <cuda_bf16.h>

#include "device/device.hpp"
#include "kernels.hpp"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

struct Args {
  float* z;
  std::int64_t ld, n;
  const float *bias, *norm_weight, *norm_bias;
  NormKind norm;
  float eps;
  std::int64_t norm_block;
  Activation activation;
  const void* residual;
  std::int64_t residual_stride;
  bool residual_bf16, residual_before, y_bf16;
  void* y;
  std::int64_t y_stride;
};

__device__ float block_sum(float value) {
  __shared__ float parts[kThreads / 32];
  __syncthreads();  // the last sum was read by everyone
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  value = parts[threadIdx.x % (kThreads / 32)];
  for (int step = kThreads / 64; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

__device__ float activate(float x, Activation kind) {
  switch (kind) {
    case Activation::relu: return x < 0.0f ? 0.0f : x;
    case Activation::silu: return x / (1.0f + expf(-x));
    case Activation::gelu: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case Activation::hardswish: return x * fminf(fmaxf(x + 3.0f, 0.0f), 6.0f) / 6.0f;
    case Activation::sigmoid: return 1.0f / (1.0f + expf(-x));
    default: return x;
  }
}

__device__ float residual_at(const Args& a, std::int64_t row, std::int64_t i) {
  const std::int64_t at = row * a.residual_stride + i;
  return a.residual_bf16 ? __bfloat162float(static_cast<const __nv_bfloat16*>(a.residual)[at])
                         : static_cast<const float*>(a.residual)[at];
}

// Columns [begin, end) of one row share one mean and one scale.
__device__ void finish_span(const Args& a, std::int64_t row, float* z, std::int64_t begin, std::int64_t end) {
  const float count = static_cast<float>(end - begin);
  float mean = 0.0f, inverse = 1.0f;
  if (a.norm == NormKind::layer) {
    float sum = 0.0f;
    for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) sum += z[i];
    mean = block_sum(sum) / count;
  }
  if (a.norm != NormKind::none) {
    float squares = 0.0f;
    for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) squares += (z[i] - mean) * (z[i] - mean);
    inverse = 1.0f / sqrtf(block_sum(squares) / count + a.eps);
  }
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    float v = (z[i] - mean) * inverse;
    if (a.norm_weight != nullptr) v *= a.norm_weight[i];
    if (a.norm_bias != nullptr) v += a.norm_bias[i];
    v = activate(v, a.activation);
    if (a.residual != nullptr && !a.residual_before) v += residual_at(a, row, i);
    if (a.y_bf16)
      static_cast<__nv_bfloat16*>(a.y)[row * a.y_stride + i] = __float2bfloat16_rn(v);
    else
      static_cast<float*>(a.y)[row * a.y_stride + i] = v;
  }
}

__global__ void __launch_bounds__(kThreads) finish_rows(Args a) {
  const std::int64_t row = blockIdx.x;
  float* z = a.z + row * a.ld;
  for (std::int64_t i = threadIdx.x; i < a.n; i += kThreads) {  // each thread reads back its own columns
    float v = z[i];
    if (a.bias != nullptr) v += a.bias[i];
    if (a.residual != nullptr && a.residual_before) v += residual_at(a, row, i);
    z[i] = v;
  }
  __syncthreads();
  const std::int64_t span = a.norm == NormKind::block ? a.norm_block : a.n;
  for (std::int64_t begin = 0; begin < a.n; begin += span)
    finish_span(a, row, z, begin, begin + span < a.n ? begin + span : a.n);
}

}  // namespace

Status finish_linear(float* z, std::int64_t ld, const Epilogue& e, const MatrixView& y, cudaStream_t stream) {
  const Args args{z,
                  ld,
                  y.cols,
                  e.bias,
                  e.norm_weight,
                  e.norm_bias,
                  e.norm,
                  e.eps,
                  e.norm_block,
                  e.last_activation(),
                  e.residual.data,
                  e.residual.row_stride,
                  e.residual.dtype == DType::bf16,
                  e.residual_before_norm,
                  y.dtype == DType::bf16,
                  y.data,
                  y.row_stride};
  finish_rows<<<static_cast<unsigned>(y.rows), kThreads, 0, stream>>>(args);
  return checked(cudaGetLastError(), "finish_linear");
}

}  // namespace octavo::cuda
