// A whole matrix to eight-bit codes with one scale. The scale needs every element, so x is read twice: to measure, then
// to encode.
#include <algorithm>

#include "device/device.hpp"
#include "device/launch.cuh"
#include "device/row_groups.cuh"
#include "kernels.hpp"
#include "octavo/quantize.hpp"
#include "quantize/codes.cuh"

namespace octavo::cuda {
namespace {

constexpr int kTogether = 4;            // steps of kColumns that a thread has under way
constexpr int kBlocksPerProcessor = 3;  // of kRowThreads: all at once, and a block ends in one pair of atomics

struct Measured {
  unsigned largest, nan;  // magnitude bits; whether there is a NaN
};

struct Matrix {
  const void* x;
  std::int64_t rows, cols, stride;  // a contiguous matrix is one row
  std::int64_t steps;               // of a row
  bool x_aligned, codes_aligned, pow2;
  DType format;
  Measured* measured;  // zeros at first
  std::uint8_t* codes;
  float* scale;
};

// visit(where the codes lie, how many of kColumns are inside, values), of all the thread's steps.
template <class In, class Visit>
__device__ void each_step(const Matrix& a, Visit visit) {
  const std::int64_t all = a.rows * a.steps, apart = static_cast<std::int64_t>(gridDim.x) * kRowThreads;
#pragma unroll 1
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kRowThreads + threadIdx.x; first < all;
       first += kTogether * apart) {
    float v[kTogether][kColumns];
    std::int64_t codes_at[kTogether];
    int count[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const std::int64_t step = first + i * apart, row = a.rows == 1 ? 0 : step / a.steps;
      const std::int64_t column = (step - row * a.steps) * kColumns;
      codes_at[i] = row * a.cols + column;
      count[i] = step >= all ? 0 : static_cast<int>(a.cols - column < kColumns ? a.cols - column : kColumns);
      load_columns(static_cast<const In*>(a.x) + (count[i] > 0 ? row * a.stride + column : 0), count[i], a.x_aligned,
                   v[i]);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i)
      if (count[i] > 0) visit(codes_at[i], count[i], v[i]);
  }
}

template <class In>
__global__ void __launch_bounds__(kRowThreads, kBlocksPerProcessor) measure_tensor(const __grid_constant__ Matrix a) {
  wait_for_previous_kernels();
  Magnitude magnitude;
  each_step<In>(a, [&](std::int64_t, int, const float (&v)[kColumns]) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) magnitude.add(v[j]);  // columns outside are 0
  });
  const unsigned largest = max_group<kRowThreads>(magnitude.largest), nan = max_group<kRowThreads>(magnitude.nan);
  if (threadIdx.x != 0) return;
  atomicMax(&a.measured->largest, largest);
  atomicMax(&a.measured->nan, nan);
}

template <class In>
__global__ void __launch_bounds__(kRowThreads, kBlocksPerProcessor) encode_tensor(const __grid_constant__ Matrix a) {
  wait_for_previous_kernels();
  RowScale s = row_scale(__uint_as_float(a.measured->largest), a.format, a.pow2);
  if (a.format == DType::i8 && a.measured->nan != 0) s.scale = __uint_as_float(0x7fc00000u);
  if (blockIdx.x == 0 && threadIdx.x == 0) *a.scale = s.scale;
  each_step<In>(a, [&](std::int64_t at, int count, const float (&v)[kColumns]) {
    store_codes(a.codes + at, encode_columns(v, s.multiplier, a.format), count, a.codes_aligned);
  });
}

template <class In>
Status run(const Matrix& matrix, cudaStream_t stream) {
  constexpr std::int64_t kSteps = kRowThreads * kTogether;  // of a block
  const std::int64_t wanted = (matrix.rows * matrix.steps + kSteps - 1) / kSteps;
  const std::int64_t most = std::int64_t{kBlocksPerProcessor} * std::max(device_info().multiprocessors, 1);
  const dim3 grid(static_cast<unsigned>(std::clamp(wanted, std::int64_t{1}, most)));
  if (Status s = launch("quantize_tensor", measure_tensor<In>, grid, kRowThreads, 0, stream, matrix); !s.ok()) return s;
  return launch("quantize_tensor", encode_tensor<In>, grid, kRowThreads, 0, stream, matrix);
}

}  // namespace

Status quantize_tensor(const QuantizeArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  if (args.scaling != Scaling::tensor)
    return Status::unsupported("quantize: this CUDA kernel has one scale for all of x; use scaling 'tensor'");
  if (Status s = expect_aligned("quantize", {{"x", args.x}, {"scales", args.scale, 4}}); !s.ok()) return s;
  const DeviceGuard guard({args.x.data, args.scale});
  const auto stream = static_cast<cudaStream_t>(args.stream);
  StreamBuffer measured(stream);
  if (Status s = measured.allocate(sizeof(Measured)); !s.ok()) return s;
  if (Status s = checked(cudaMemsetAsync(measured.as<void>(), 0, sizeof(Measured), stream), "quantize_tensor"); !s.ok())
    return s;
  const MatrixView& x = args.x;
  const bool is_one_row = x.rows <= 1 || x.row_stride == x.cols;
  const std::int64_t rows = is_one_row ? 1 : x.rows, cols = is_one_row ? x.rows * x.cols : x.cols;
  const auto element = static_cast<std::int64_t>(size_of(x.dtype));
  const Matrix matrix{x.data,
                      rows,
                      cols,
                      x.row_stride,
                      (cols + kColumns - 1) / kColumns,
                      is_aligned(x.data, is_one_row ? 0 : x.row_stride * element),
                      reinterpret_cast<std::uintptr_t>(args.codes) % 8 == 0 && (is_one_row || cols % 8 == 0),
                      args.pow2_scale,
                      args.format,
                      measured.as<Measured>(),
                      static_cast<std::uint8_t*>(args.codes),
                      args.scale};
  switch (x.dtype) {
    case DType::f32: return run<float>(matrix, stream);
    case DType::bf16: return run<__nv_bfloat16>(matrix, stream);
    default: return run<__half>(matrix, stream);
  }
}

}  // namespace octavo::cuda
