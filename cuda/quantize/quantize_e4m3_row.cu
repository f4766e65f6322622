// Rows of FP32 or BF16 to E4M3 codes and one scale a row, by the rules of octavo/quantize.hpp. One block a row.
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "device/device.hpp"
#include "kernels.hpp"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kLargest = 448.0f, kSmallestScale = 1.17549435e-38f;  // 2^-126

__device__ float load(const float* x, std::int64_t i) { return x[i]; }
__device__ float load(const __nv_bfloat16* x, std::int64_t i) { return __bfloat162float(x[i]); }

__device__ float round_up_to_power_of_two(float scale) {
  const unsigned bits = __float_as_uint(scale);
  const unsigned exponent = bits & 0x7f800000u;
  return __uint_as_float((bits & 0x007fffffu) != 0 ? exponent + 0x00800000u : exponent);
}

struct Scale {
  float scale, multiplier;
};

__device__ Scale scale_for(float amax, bool pow2) {
  if (!(amax > 0.0f)) return {1.0f, 1.0f};
  float scale = __fdiv_rn(amax, kLargest);
  if (pow2) {
    scale = round_up_to_power_of_two(fmaxf(scale, kSmallestScale));
    return {scale, __fdiv_rn(1.0f, scale)};
  }
  if (scale < kSmallestScale) return {kSmallestScale, __fdiv_rn(1.0f, kSmallestScale)};
  return {scale, __fdiv_rn(kLargest, amax)};
}

__device__ float block_max(float value) {
  __shared__ float parts[kThreads / 32];
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  value = parts[threadIdx.x % (kThreads / 32)];
  for (int step = kThreads / 64; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}

template <class In>
__global__ void __launch_bounds__(kThreads)
    quantize_rows(const In* x, std::int64_t cols, std::int64_t stride, bool pow2, __nv_fp8_storage_t* codes,
                  std::int64_t ld, float* scales) {
  const std::int64_t row = blockIdx.x;
  x += row * stride;
  codes += row * ld;
  float amax = 0.0f;
  for (std::int64_t i = threadIdx.x; i < cols; i += kThreads) {
    const float magnitude = fabsf(load(x, i));
    if (magnitude <= 3.402823466e38f) amax = fmaxf(amax, magnitude);  // neither infinity nor NaN enters the scale
  }
  const Scale s = scale_for(block_max(amax), pow2);
  if (threadIdx.x == 0) scales[row] = s.scale;
  for (std::int64_t i = threadIdx.x; i < ld; i += kThreads)
    codes[i] = i < cols ? __nv_cvt_float_to_fp8(__fmul_rn(load(x, i), s.multiplier), __NV_SATFINITE, __NV_E4M3) : 0;
}

template <class In>
void launch(const QuantizeArgs& args, std::int64_t ld) {
  quantize_rows<<<static_cast<unsigned>(args.x.rows), kThreads, 0, static_cast<cudaStream_t>(args.stream)>>>(
      static_cast<const In*>(args.x.data), args.x.cols, args.x.row_stride, args.pow2_scale,
      static_cast<__nv_fp8_storage_t*>(args.codes), ld, args.scale);
}

}  // namespace

Status quantize_e4m3_row_padded(const QuantizeArgs& args, std::int64_t ld) {
  if (Status status = validate(args); !status.ok()) return status;
  if (args.format != DType::e4m3 || args.scaling != Scaling::row)
    return Status::unsupported("quantize: this CUDA kernel makes E4M3 codes with row scales only");
  if (args.x.rows == 0) return {};
  if (args.x.rows > 0x7fffffff) return Status::unsupported("quantize: the CUDA kernel takes up to 2^31 - 1 rows");
  const DeviceGuard guard(args.x.data);
  switch (args.x.dtype) {
    case DType::f32: launch<float>(args, ld); break;
    case DType::bf16: launch<__nv_bfloat16>(args, ld); break;
    default: return Status::unsupported("quantize: this CUDA kernel reads float32 and bfloat16");
  }
  return checked(cudaGetLastError(), "quantize_e4m3_row");
}

Status quantize_e4m3_row(const QuantizeArgs& args) { return quantize_e4m3_row_padded(args, args.x.cols); }

}  // namespace octavo::cuda
