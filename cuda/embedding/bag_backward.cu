// Backward of embedding bags fused with the optimizer: lookups are sorted by row, and a warp takes each touched row
// through decode, gradient, update and encode. One order for every sum, so the same bits every time.
//
// The rules and, for rows of up to kSegment lookups, the bits are those of cpu/generic/bag_backward.cpp.
#include <algorithm>
#include <bit>
#include <vector>

#include "device/device.hpp"
#include "device/launch.cuh"
#include "embedding/lookup_runs.cuh"
#include "embedding/stored_row.cuh"
#include "kernels.hpp"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 8;          // of a block, at most
constexpr int kColumnsAtOnce = 4;  // of a lane: 128 of a row
constexpr int kLookupsAtOnce = 4;  // gradients under way
constexpr std::size_t kSharedBytes = 48 << 10;
constexpr std::int64_t kMostColumns = kSharedBytes / (2 * sizeof(float));  // x and g of one row

struct Backward {
  const DeviceTable* tables;
  std::int64_t num_tables, batch;
  SortedLookups lookups;
  const float *weights, *inverse_counts;  // null: all 1
  const float* grad;                      // [batch, columns]
  std::int64_t grad_stride;
  float* partial;  // [segments, partial_stride]
  int partial_stride;
  OptimizerConfig optimizer;
  float step_size;
};

__device__ const DeviceTable& table_of(const Backward& a, std::uint32_t key) {
  std::int64_t low = 0, high = a.num_tables;  // the last table that starts at or before the key; empty ones come first
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    if (a.tables[middle].first_key <= key)
      low = middle;
    else
      high = middle;
  }
  return a.tables[low];
}

// What a lookup's gradient is multiplied by.
__device__ inline float coefficient(const Backward& a, std::uint32_t position, std::uint32_t bag) {
  const float weight = a.weights != nullptr ? a.weights[position] : 1.0f;
  return weight * (a.inverse_counts != nullptr ? a.inverse_counts[bag] : 1.0f);
}

__device__ inline const float* gradient_of(const Backward& a, const DeviceTable& t, std::uint32_t bag) {
  return a.grad + static_cast<std::int64_t>(bag) % a.batch * a.grad_stride + t.column;
}

// sum [dim] of sorted lookups [begin, end), one after the other.
__device__ void sum_gradients(const Backward& a, const DeviceTable& t, std::uint32_t begin, std::uint32_t end,
                              float* sum) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int first = 0; first < t.dim; first += 32 * kColumnsAtOnce) {
    float total[kColumnsAtOnce] = {};
    for (std::uint32_t i = begin; i < end; i += kLookupsAtOnce) {
      float g[kLookupsAtOnce][kColumnsAtOnce], factor[kLookupsAtOnce];
#pragma unroll
      for (int k = 0; k < kLookupsAtOnce; ++k) {
        if (i + k >= end) continue;
        const std::uint32_t position = a.lookups.sorted_positions[i + k], bag = a.lookups.bags[position];
        const float* row = gradient_of(a, t, bag);
        factor[k] = coefficient(a, position, bag);
#pragma unroll
        for (int j = 0; j < kColumnsAtOnce; ++j) {
          const int c = first + lane + 32 * j;
          g[k][j] = c < t.dim ? row[c] : 0.0f;
        }
      }
#pragma unroll
      for (int k = 0; k < kLookupsAtOnce; ++k)
        if (i + k < end)
#pragma unroll
          for (int j = 0; j < kColumnsAtOnce; ++j) total[j] += factor[k] * g[k][j];
    }
#pragma unroll
    for (int j = 0; j < kColumnsAtOnce; ++j)
      if (const int c = first + lane + 32 * j; c < t.dim) sum[c] = total[j];
  }
}

__device__ inline std::uint32_t warp_of_grid() { return (blockIdx.x * blockDim.x + threadIdx.x) / 32; }
__device__ inline std::uint32_t warps_of_grid() { return gridDim.x * blockDim.x / 32; }

__global__ void __launch_bounds__(kWarps * 32) sum_segments(const __grid_constant__ Backward a) {
  wait_for_previous_kernels();
  const std::uint32_t count = a.lookups.counts[1];
  for (std::uint32_t s = warp_of_grid(); s < count; s += warps_of_grid()) {
    const LookupSegment segment = a.lookups.segments[s];
    sum_gradients(a, table_of(a, a.lookups.sorted_keys[segment.begin]), segment.begin, segment.end,
                  a.partial + static_cast<std::int64_t>(s) * a.partial_stride);
  }
}

// Gradients of the weights, at the rows before their update: a warp a lookup.
__global__ void __launch_bounds__(kWarps * 32)
    weight_gradients(const __grid_constant__ Backward a, std::uint32_t num_values, float* grad_weights) {
  wait_for_previous_kernels();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (std::uint32_t position = warp_of_grid(); position < num_values; position += warps_of_grid()) {
    const std::uint32_t key = a.lookups.keys[position];
    if (key == kNoRow) continue;
    const DeviceTable& t = table_of(a, key);
    const std::uint32_t bag = a.lookups.bags[position];
    const std::int64_t row = key - t.first_key;
    const RowAffine affine = affine_of(t, row);
    const float* g = gradient_of(a, t, bag);
    float dot = 0.0f;
    for (int c = lane; c < t.dim; c += 32) dot += g[c] * stored_value(t.dtype, stored_row(t, row), c, affine);
    dot = sum_group<32>(dot);
    if (lane == 0) grad_weights[position] = dot * (a.inverse_counts != nullptr ? a.inverse_counts[bag] : 1.0f);
  }
}

// In eight sums, columns dealt in turn, then pairwise: the CPU's order.
__device__ float mean_square(const float* g, int dim) {
  float squares = 0.0f;
  for (int c = static_cast<int>(threadIdx.x) % 8; c < dim; c += 8) squares += g[c] * g[c];
#pragma unroll
  for (int step = 4; step > 0; step /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, step);
  return squares / static_cast<float>(dim);
}

// One step on x and the state of a row.
__device__ void update_row(const Backward& a, const DeviceTable& t, std::int64_t row, float* x, float* g) {
  const OptimizerConfig& o = a.optimizer;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float lr = a.step_size, eps = o.eps;
  float* state = t.state + row * state_width(o.kind, t.dim);
  if (o.weight_decay != 0.0f)
    for (int c = lane; c < t.dim; c += 32) g[c] += o.weight_decay * x[c];
  switch (o.kind) {
    case Optimizer::none: break;
    case Optimizer::sgd:
      for (int c = lane; c < t.dim; c += 32) x[c] -= lr * g[c];
      break;
    case Optimizer::row_wise_adagrad: {
      __syncwarp();  // other lanes' columns of g
      const float squares = *state + mean_square(g, t.dim);
      __syncwarp();  // everyone has read the state
      if (lane == 0) *state = squares;
      const float step = lr / (sqrtf(squares) + eps);
      for (int c = lane; c < t.dim; c += 32) x[c] -= step * g[c];
      break;
    }
    case Optimizer::adagrad:
      for (int c = lane; c < t.dim; c += 32) {
        state[c] += g[c] * g[c];
        x[c] -= lr * g[c] / (sqrtf(state[c]) + eps);
      }
      break;
    case Optimizer::adam: {
      float *m = state, *v = state + t.dim;
      const float fresh1 = 1.0f - o.beta1, fresh2 = 1.0f - o.beta2;
      for (int c = lane; c < t.dim; c += 32) {
        m[c] += fresh1 * (g[c] - m[c]);
        v[c] += fresh2 * (g[c] * g[c] - v[c]);
        x[c] -= lr * m[c] / (sqrtf(v[c]) + eps);
      }
      break;
    }
  }
  __syncwarp();  // encoding reads columns of other lanes
}

__global__ void __launch_bounds__(kWarps * 32) update_rows(const __grid_constant__ Backward a, int row_floats) {
  wait_for_previous_kernels();
  float* x = dynamic_shared<float>() + 2 * row_floats * (threadIdx.x / 32);
  float* g = x + row_floats;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::uint32_t count = a.lookups.counts[0];
  for (std::uint32_t r = warp_of_grid(); r < count; r += warps_of_grid()) {
    const LookupRun run = a.lookups.runs[r];
    const std::uint32_t key = a.lookups.sorted_keys[run.begin];
    const DeviceTable& t = table_of(a, key);
    const std::int64_t row = key - t.first_key;
    if (run.end - run.begin <= kSegment) {
      sum_gradients(a, t, run.begin, run.end, g);
    } else {
      const std::uint32_t pieces = (run.end - run.begin + kSegment - 1) / kSegment;
      for (int c = lane; c < t.dim; c += 32) {
        const float* from = a.partial + static_cast<std::int64_t>(run.first_segment) * a.partial_stride + c;
        float total = 0.0f;
        for (std::uint32_t p = 0; p < pieces; ++p) total += from[static_cast<std::int64_t>(p) * a.partial_stride];
        g[c] = total;
      }
    }
    decode_row(t, row, x);
    update_row(a, t, row, x, g);
    encode_row(
        t, row,
        {x, a.optimizer.rounding == Rounding::stochastic, random_row(t.random, static_cast<std::uint64_t>(row))});
    __syncwarp();  // the next row's columns take the place of these
  }
}

// Tables with the keys of their rows; `most`: the longest row.
Status make_tables(const BagBackwardArgs& args, std::vector<DeviceTable>& tables, std::int64_t& rows, bool& any_mean,
                   std::int64_t& most) {
  std::int64_t column = 0;
  for (std::int64_t i = 0; i < args.indices.num_tables; ++i) {
    const TableView& table = args.tables[i];
    if (table.dim > kMostColumns)
      return Status::unsupported("tables: the CUDA backward takes up to " + std::to_string(kMostColumns) +
                                 " columns, found " + std::to_string(table.dim));
    DeviceTable t = device_table(table, column);
    t.random = random_table(args.optimizer, i);
    t.first_key = static_cast<std::uint32_t>(rows);
    tables.push_back(t);
    rows += table.num_rows;
    column += table.dim;
    any_mean |= t.mean;
    most = std::max(most, table.dim);
    if (rows >= kNoRow)
      return Status::unsupported("tables: the CUDA backward takes up to 2^32 - 2 rows in one call; split the tables");
  }
  return {};
}

// Pieces of one allocation, each 256-byte aligned: taken once from nothing to know the size, once from the memory.
struct Carver {
  char* memory = nullptr;
  std::size_t bytes = 0;

  template <class T>
  void take(T*& to, std::int64_t count) {
    if (memory != nullptr) to = reinterpret_cast<T*>(memory + bytes);
    bytes += (static_cast<std::size_t>(count) * sizeof(T) + 255) / 256 * 256;
  }
};

Status run(const BagBackwardArgs& args, const std::vector<DeviceTable>& tables, std::int64_t rows, bool any_mean,
           std::int64_t most) {
  const BagIndices& in = args.indices;
  const auto stream = static_cast<cudaStream_t>(args.stream);
  const std::int64_t n = in.num_values, bags = in.num_tables * in.batch;
  Backward a{};
  DeviceTable* device_tables = nullptr;
  LookupFaults* faults = nullptr;
  float* inverse_counts = nullptr;
  const auto take_all = [&](Carver carver) {
    SortedLookups& l = a.lookups;
    carver.take(device_tables, in.num_tables);
    carver.take(faults, 1);
    for (std::uint32_t** array : {&l.keys, &l.sorted_keys, &l.positions, &l.sorted_positions, &l.bags})
      carver.take(*array, n);
    carver.take(l.runs, n);
    carver.take(l.segments, most_segments(n));
    carver.take(l.counts, 2);
    carver.take(a.partial, most_segments(n) * most);
    if (any_mean) carver.take(inverse_counts, bags);
    return carver.bytes;
  };
  StreamBuffer memory(stream);
  if (Status s = memory.allocate(take_all({})); !s.ok()) return s;
  take_all({memory.as<char>()});
  if (Status s = checked(cudaMemsetAsync(faults, 0xff, sizeof(LookupFaults), stream), "bag_backward"); !s.ok())
    return s;
  if (Status s = upload_tables(tables.data(), in.num_tables, device_tables, stream); !s.ok()) return s;
  const DeviceIndices indices{in.values, in.offsets, in.weights, in.batch, in.num_tables, n, faults};
  if (Status s = make_keys(device_tables, indices, a.lookups, inverse_counts, stream); !s.ok()) return s;
  std::int64_t skipped = 0;
  if (args.bounds == Bounds::error)  // before any row has changed
    if (Status s = report_faults(faults, args.tables, in, args.bounds, skipped, stream); !s.ok()) return s;

  a.tables = device_tables;
  a.num_tables = in.num_tables;
  a.batch = in.batch;
  a.weights = in.weights;
  a.inverse_counts = inverse_counts;
  a.grad = static_cast<const float*>(args.grad_out.data);
  a.grad_stride = args.grad_out.row_stride;
  a.partial_stride = static_cast<int>(most);
  a.optimizer = args.optimizer;
  a.step_size = step_size(args.optimizer);
  const unsigned blocks =
      static_cast<unsigned>(std::min<std::int64_t>((n + kWarps - 1) / kWarps, 16 * device_info().multiprocessors));
  if (args.grad_weights != nullptr)
    if (Status s = launch("bag_backward", weight_gradients, dim3(blocks), kWarps * 32, 0, stream, a,
                          static_cast<std::uint32_t>(n), args.grad_weights);
        !s.ok())
      return s;
  if (args.optimizer.kind == Optimizer::none) return {};
  if (Status s = sort_lookups(a.lookups, n, std::bit_width(static_cast<std::uint64_t>(rows)), stream); !s.ok())
    return s;
  if (Status s = find_runs(a.lookups, n, stream); !s.ok()) return s;
  if (n > kSegment)
    if (Status s = launch("bag_backward", sum_segments, dim3(blocks), kWarps * 32, 0, stream, a); !s.ok()) return s;
  const int warps = static_cast<int>(std::min<std::int64_t>(kWarps, kMostColumns / most));
  const unsigned row_blocks = blocks * static_cast<unsigned>((kWarps + warps - 1) / warps);
  return launch("bag_backward", update_rows, dim3(row_blocks), static_cast<unsigned>(warps) * 32,
                static_cast<std::size_t>(warps * 2 * most) * sizeof(float), stream, a, static_cast<int>(most));
}

}  // namespace

Status bag_backward(const BagBackwardArgs& args) {
  if (Status status = validate_shapes(args); !status.ok()) return status;
  const BagIndices& in = args.indices;
  if (in.num_tables * in.batch >= std::int64_t{1} << 32)
    return Status::unsupported("offsets: at most 2^32 - 1 bags of all tables in one backward; split the batch");
  if (Status s = expect_readable("bag_backward", args.tables, in); !s.ok()) return s;
  if (Status s = expect_aligned("bag_backward", {{"grad", args.grad_out}, {"grad_weights", args.grad_weights, 4}});
      !s.ok())
    return s;
  std::vector<DeviceTable> tables;
  std::int64_t rows = 0, most = 0;
  bool any_mean = false;
  if (Status status = make_tables(args, tables, rows, any_mean, most); !status.ok()) return status;
  if (in.num_values == 0 || most == 0) return {};
  const DeviceGuard guard(in.values);
  return run(args, tables, rows, any_mean, most);
}

}  // namespace octavo::cuda
