// Sums over rows that were made in slices: one fixed order of additions.
#include "device/launch.cuh"
#include "kernels.hpp"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    add_slices(const float* parts, std::int64_t count, std::int64_t stride, std::int64_t rows, std::int64_t cols,
               std::int64_t ld, float* out, std::int64_t out_ld) {
  wait_for_previous_kernels();
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; i < rows * cols; i += step) {
    const std::int64_t row = i / cols, col = i % cols;
    float sum = 0.0f;
    for (std::int64_t part = 0; part < count; ++part) sum += parts[part * stride + row * ld + col];
    out[row * out_ld + col] = sum;
  }
}

}  // namespace

Status sum_slices(const float* parts, std::int64_t count, std::int64_t stride, std::int64_t ld, const MatrixView& out,
                  cudaStream_t stream) {
  const std::int64_t size = out.rows * out.cols;
  if (size == 0) return {};
  const std::int64_t blocks = (size + kThreads - 1) / kThreads;
  return launch("sum_slices", add_slices, dim3(static_cast<unsigned>(blocks < 4096 ? blocks : 4096)), kThreads, 0,
                stream, parts, count, stride, out.rows, out.cols, ld, static_cast<float*>(out.data), out.row_stride);
}

}  // namespace octavo::cuda
