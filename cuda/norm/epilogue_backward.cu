// Gradient of z through activation and norm, and the sums over rows that parameters need. Two kernels: by rows, where
// the gradient is written, then by columns, where z and grad are read again and summed in an order that depends on M
// alone. Without parameters the second one does not run.
#include "device/device.hpp"
#include "device/launch.cuh"
#include "device/row_groups.cuh"
#include "kernels.hpp"
#include "norm/activations.cuh"

namespace octavo::cuda {
namespace {

// Of a row's span: the norm's mean and inverse root, the mean gradient and the gradient along the normalised row.
struct alignas(16) SpanState {
  float mean, inverse, shift, slope;
};

struct Backward {
  FloatMatrix z, grad, grad_z, grad_extra;  // z is not read without norm and activation
  std::int64_t rows;
  int cols, span, spans;
  bool vectors_aligned;
  const float *norm_weight, *norm_bias;
  NormKind norm;
  Activation activation;
  float eps;
  SpanState* states;  // [rows, spans]; null: nobody sums columns
};

// Of one step: z becomes the normalised row, g the gradient of it, and before_weight the gradient before the weight.
__device__ inline void pull(const Backward& a, float mean, float inverse, int at, int count, float (&z)[kColumns],
                            float (&g)[kColumns], float (&before_weight)[kColumns]) {
  if (a.norm == NormKind::none) {
    pull_activation(g, z, a.activation);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) before_weight[j] = g[j];
    return;
  }
  const bool aligned = a.vectors_aligned && at % kColumns == 0;
  float weight[kColumns], v[kColumns];
#pragma unroll
  for (int j = 0; j < kColumns; ++j) weight[j] = 1.0f;
  if (a.norm_weight != nullptr) load_columns(a.norm_weight + at, count, aligned, weight);
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    z[j] = (z[j] - mean) * inverse;
    v[j] = z[j] * weight[j];
  }
  if (a.norm_bias != nullptr && a.activation != Activation::none) {
    float bias[kColumns];
    load_columns(a.norm_bias + at, count, aligned, bias);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) v[j] += bias[j];
  }
  pull_activation(g, v, a.activation);
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    before_weight[j] = g[j];
    g[j] *= weight[j];
  }
}

__device__ inline void load_pair(const Backward& a, std::int64_t row, int at, int count, float (&z)[kColumns],
                                 float (&g)[kColumns]) {
#pragma unroll
  for (int j = 0; j < kColumns; ++j) z[j] = 0.0f;
  if (a.z.data != nullptr) a.z.load(row, at, count, z);
  a.grad.load(row, at, count, g);
}

template <int kLanes, int kKept>
__global__ void __launch_bounds__(kRowThreads) backward_rows(const __grid_constant__ Backward a) {
  wait_for_previous_kernels();
  const std::int64_t group = static_cast<std::int64_t>(blockIdx.x) * (kRowThreads / kLanes) + threadIdx.x / kLanes;
  const bool is_row = group < a.rows;  // the warp's last lanes may have none, and reduce along
  const std::int64_t row = is_row ? group : a.rows - 1;
  for (int s = 0; s < a.spans; ++s) {
    const int begin = s * a.span, last = a.cols - begin < a.span ? a.cols : begin + a.span;
    const int end = is_row ? last : begin;
    const float columns = static_cast<float>(last - begin);
    const auto column = [&](int step) {
      return begin + (step * kLanes + static_cast<int>(threadIdx.x) % kLanes) * kColumns;
    };
    float z[kKept][kColumns], g[kKept][kColumns];
    // Visits (column, count, z, grad) of each step: kept ones in registers, where changes stay; others as in memory.
    const auto each = [&](auto visit) {
#pragma unroll
      for (int step = 0; step < kKept; ++step)
        if (const int at = column(step); at < end)
          visit(at, end - at < kColumns ? end - at : kColumns, z[step], g[step], true);
#pragma unroll 1
      for (int at = column(kKept); at < end; at += kLanes * kColumns) {
        const int count = end - at < kColumns ? end - at : kColumns;
        float z_read[kColumns], g_read[kColumns];
        load_pair(a, row, at, count, z_read, g_read);
        visit(at, count, z_read, g_read, false);
      }
    };
#pragma unroll
    for (int step = 0; step < kKept; ++step)
      if (const int at = column(step); at < end)
        load_pair(a, row, at, end - at < kColumns ? end - at : kColumns, z[step], g[step]);

    SpanState state{0.0f, 1.0f, 0.0f, 0.0f};
    if (a.norm == NormKind::layer) {
      float sum = 0.0f;
      each([&](int, int, float (&x)[kColumns], float (&)[kColumns], bool) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) sum += x[j];  // columns outside are 0
      });
      state.mean = sum_group<kLanes>(sum) / columns;
    }
    if (a.norm != NormKind::none) {
      float squares = 0.0f, total = 0.0f, along = 0.0f;
      each([&](int, int count, float (&x)[kColumns], float (&)[kColumns], bool) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const float d = j < count ? x[j] - state.mean : 0.0f;
          squares = fmaf(d, d, squares);
        }
      });
      state.inverse = 1.0f / sqrtf(sum_group<kLanes>(squares) / columns + a.eps);
      each([&](int at, int count, float (&x)[kColumns], float (&d)[kColumns], bool) {
        float before[kColumns];
        pull(a, state.mean, state.inverse, at, count, x, d, before);
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          if (j < count) {
            total += d[j];
            along += d[j] * x[j];
          }
      });
      if (a.norm == NormKind::layer) state.shift = sum_group<kLanes>(total) / columns;
      state.slope = sum_group<kLanes>(along) / columns;
    }
    each([&](int at, int count, float (&x)[kColumns], float (&d)[kColumns], bool kept) {
      float before[kColumns];
      if (!kept || a.norm == NormKind::none) pull(a, state.mean, state.inverse, at, count, x, d, before);
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
        d[j] = a.norm == NormKind::none ? d[j] : (d[j] - state.shift - x[j] * state.slope) * state.inverse;
      if (a.grad_z.data != nullptr) a.grad_z.store(row, at, count, d);
      if (a.grad_extra.data != nullptr) a.grad_extra.store(row, at, count, d);
    });
    if (a.states != nullptr && is_row && threadIdx.x % kLanes == 0) a.states[row * a.spans + s] = state;
  }
}

constexpr int kSumColumns = 32 * kColumns, kSumRows = kRowThreads / 32;  // of a block, a warp a row at a time

struct Sums {
  float *bias, *norm_weight, *norm_bias;  // null: not wanted
};

// A block's share of the rows, summed for its columns: partial [chunk][kind][cols], kinds as wanted.
__global__ void __launch_bounds__(kRowThreads)
    sum_columns(const __grid_constant__ Backward a, Sums wanted, std::int64_t rows_per_chunk, float* partial) {
  wait_for_previous_kernels();
  __shared__ float sums[kSumRows][kSumColumns];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int first_column = static_cast<int>(blockIdx.y) * kSumColumns, at = first_column + lane * kColumns;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * rows_per_chunk;
  const std::int64_t last = first + rows_per_chunk < a.rows ? first + rows_per_chunk : a.rows;
  const int count = a.cols - at < kColumns ? a.cols - at : kColumns;
  float bias[kColumns] = {}, norm_weight[kColumns] = {}, norm_bias[kColumns] = {};
#pragma unroll 1
  for (std::int64_t row = first + warp; row < last && count > 0; row += kSumRows) {
    float z[kColumns], g[kColumns], before[kColumns];
    load_pair(a, row, at, count, z, g);
    const SpanState* states = a.states + row * a.spans;
    if (a.norm == NormKind::block && a.span % kColumns != 0) {  // a step may cross the border of two spans
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        if (j >= count) continue;
        const SpanState s = states[(at + j) / a.span];
        float one_z[kColumns] = {z[j]}, one_g[kColumns] = {g[j]};
        pull(a, s.mean, s.inverse, at, 1, one_z, one_g, before);
        bias[j] += (one_g[0] - one_z[0] * s.slope) * s.inverse;
      }
      continue;
    }
    const SpanState s = a.norm == NormKind::none ? SpanState{0.0f, 1.0f, 0.0f, 0.0f} : states[at / a.span];
    pull(a, s.mean, s.inverse, at, count, z, g, before);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      norm_weight[j] += before[j] * z[j];
      norm_bias[j] += before[j];
      bias[j] += a.norm == NormKind::none ? g[j] : (g[j] - s.shift - z[j] * s.slope) * s.inverse;
    }
  }
  float* out = partial;
  const auto add_warps = [&](const float* asked, const float (&mine)[kColumns]) {
    if (asked == nullptr) return;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) sums[warp][lane * kColumns + j] = mine[j];
    __syncthreads();
    const int column = first_column + static_cast<int>(threadIdx.x);
    float total = 0.0f;
    for (int w = 0; w < kSumRows; ++w) total += sums[w][threadIdx.x];
    if (column < a.cols) out[static_cast<std::int64_t>(blockIdx.x) * a.cols + column] = total;
    __syncthreads();
    out += static_cast<std::int64_t>(gridDim.x) * a.cols;
  };
  add_warps(wanted.bias, bias);
  add_warps(wanted.norm_weight, norm_weight);
  add_warps(wanted.norm_bias, norm_bias);
}

__global__ void __launch_bounds__(kRowThreads) add_chunks(const float* partial, int chunks, int cols, Sums sums) {
  wait_for_previous_kernels();
  const int column = static_cast<int>(blockIdx.x) * kRowThreads + static_cast<int>(threadIdx.x);
  if (column >= cols) return;
  for (float* to : {sums.bias, sums.norm_weight, sums.norm_bias}) {
    if (to == nullptr) continue;
    float total = 0.0f;
    for (int chunk = 0; chunk < chunks; ++chunk) total += partial[static_cast<std::int64_t>(chunk) * cols + column];
    to[column] = total;
    partial += static_cast<std::int64_t>(chunks) * cols;
  }
}

Status sum_parameters(const Backward& backward, const Sums& sums, cudaStream_t stream) {
  constexpr std::int64_t kMostChunks = 256, kLeastRows = 4 * kSumRows;
  const std::int64_t fair = (backward.rows + kMostChunks - 1) / kMostChunks;
  const std::int64_t per_chunk = fair < kLeastRows ? kLeastRows : fair;
  const auto chunks = static_cast<unsigned>((backward.rows + per_chunk - 1) / per_chunk);
  const int kinds = (sums.bias != nullptr) + (sums.norm_weight != nullptr) + (sums.norm_bias != nullptr);
  const auto blocks = [&](int columns) { return static_cast<unsigned>((backward.cols + columns - 1) / columns); };
  StreamBuffer partial(stream);
  if (Status s = partial.allocate(std::size_t{chunks} * static_cast<std::size_t>(kinds * backward.cols) * 4); !s.ok())
    return s;
  if (chunks > 0)
    if (Status s = launch("linear_epilogue_backward", sum_columns, dim3(chunks, blocks(kSumColumns)), kRowThreads, 0,
                          stream, backward, sums, per_chunk, partial.as<float>());
        !s.ok())
      return s;
  return launch("linear_epilogue_backward", add_chunks, dim3(blocks(kRowThreads)), kRowThreads, 0, stream,
                static_cast<const float*>(partial.as<float>()), static_cast<int>(chunks), backward.cols, sums);
}

}  // namespace

Status linear_epilogue_backward(const EpilogueBackwardArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  const std::int64_t m = args.grad.rows, n = args.grad.cols;
  if (n == 0) return {};
  if (m > kMostRows || n > kSumColumns * 65535LL)
    return Status::unsupported("linear_epilogue_backward: takes up to 2^31 - 1 rows and 16,776,960 columns");
  const Epilogue& e = args.epilogue;
  if (Status s = expect_aligned("linear_epilogue_backward", {{"z", args.z},
                                                             {"grad", args.grad},
                                                             {"norm weight", e.norm_weight, 4},
                                                             {"norm bias", e.norm_bias, 4},
                                                             {"gradient of z", args.grad_z},
                                                             {"gradient of the residual", args.grad_extra},
                                                             {"gradient of bias", args.grad_bias, 4},
                                                             {"gradient of norm weight", args.grad_norm_weight, 4},
                                                             {"gradient of norm bias", args.grad_norm_bias, 4}});
      !s.ok())
    return s;
  const DeviceGuard guard({args.grad.data, args.grad_bias, args.grad_norm_weight, args.grad_norm_bias});
  const auto stream = static_cast<cudaStream_t>(args.stream);
  const Sums sums{args.grad_bias, args.grad_norm_weight, args.grad_norm_bias};
  const bool summed = sums.bias != nullptr || sums.norm_weight != nullptr || sums.norm_bias != nullptr;
  const bool reads_z = e.norm != NormKind::none || e.activation != Activation::none;
  Backward backward{};
  if (reads_z) backward.z = float_matrix(args.z);
  backward.grad = float_matrix(args.grad);
  backward.grad_z = float_matrix(args.grad_z);
  backward.grad_extra = float_matrix(args.grad_extra);
  backward.rows = m;
  backward.cols = static_cast<int>(n);
  backward.span = e.norm == NormKind::block && e.norm_block < n ? static_cast<int>(e.norm_block) : backward.cols;
  backward.spans = (backward.cols + backward.span - 1) / backward.span;
  backward.vectors_aligned = is_aligned(e.norm_weight, 0) && is_aligned(e.norm_bias, 0);
  backward.norm_weight = e.norm == NormKind::block ? nullptr : e.norm_weight;
  backward.norm_bias = e.norm == NormKind::layer ? e.norm_bias : nullptr;
  backward.norm = e.norm;
  backward.activation = e.last_activation();
  backward.eps = e.eps;
  StreamBuffer states(stream);
  if (summed && e.norm != NormKind::none) {
    const auto count = static_cast<std::size_t>(m * backward.spans);
    if (Status s = states.allocate(count * sizeof(SpanState)); !s.ok()) return s;
    backward.states = states.as<SpanState>();
  }
  const bool by_rows = args.grad_z.data != nullptr || args.grad_extra.data != nullptr || backward.states != nullptr;
  if (m > 0 && by_rows) {
    const Status status = with_row_groups(backward.span, [&]<int kLanes, int kKept>() {
      constexpr int kHalf = kKept > 1 ? kKept / 2 : 1;  // two rows in registers
      return launch("linear_epilogue_backward", backward_rows<kLanes, kHalf>, dim3(row_blocks<kLanes>(m)), kRowThreads,
                    0, stream, backward);
    });
    if (!status.ok()) return status;
  }
  return summed ? sum_parameters(backward, sums, stream) : Status{};
}

}  // namespace octavo::cuda
