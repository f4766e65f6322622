// Keys of a backward's lookups, and after their sort the runs of lookups that touch one row.
#include "embedding/lookup_runs.cuh"

#include "device/launch.cuh"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256, kBagLanes = 8;

__global__ void __launch_bounds__(kThreads) store_tables(const __grid_constant__ TableChunk chunk, DeviceTable* to) {
  wait_for_previous_kernels();
  if (static_cast<int>(threadIdx.x) < chunk.count) to[threadIdx.x] = chunk.tables[threadIdx.x];
}

// kBagLanes lanes a bag.
__global__ void __launch_bounds__(kThreads)
    make_keys(const DeviceTable* tables, DeviceIndices in, SortedLookups out, float* inverse_counts) {
  wait_for_previous_kernels();
  const std::int64_t bag = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kBagLanes;
  const bool is_bag = bag < in.num_tables * in.batch;
  const int lane = static_cast<int>(threadIdx.x) % kBagLanes;
  LookupRange range{0, 0};
  if (is_bag) range = lookups_between(in, bag, bag + 1, lane == 0);
  const DeviceTable& t = tables[is_bag ? bag / in.batch : 0];
  int inside = 0;
  for (std::int64_t v = range.begin + lane; v < range.end; v += kBagLanes) {
    const std::int64_t row = in.values[v];
    out.bags[v] = static_cast<std::uint32_t>(bag);
    if (static_cast<std::uint64_t>(row) < static_cast<std::uint64_t>(t.num_rows)) {
      out.keys[v] = t.first_key + static_cast<std::uint32_t>(row);
      ++inside;
    } else {
      report_outside(in, v);  // its key stays kNoRow
    }
  }
  if (inverse_counts == nullptr) return;
#pragma unroll
  for (int step = kBagLanes / 2; step > 0; step /= 2) inside += __shfl_xor_sync(0xffffffffu, inside, step);
  if (is_bag && lane == 0) inverse_counts[bag] = t.mean && inside > 1 ? 1.0f / static_cast<float>(inside) : 1.0f;
}

__global__ void __launch_bounds__(kThreads) count_up(std::uint32_t* to, std::int64_t n) {
  wait_for_previous_kernels();
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) to[i] = static_cast<std::uint32_t>(i);
}

// The first lookup of each run enters it; in which order they stand matters to nobody.
__global__ void __launch_bounds__(kThreads) find_runs(SortedLookups lookups, std::uint32_t n) {
  wait_for_previous_kernels();
  __shared__ std::uint32_t before[kThreads / 32], first_run;
  const std::uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const std::uint32_t key = i < n ? lookups.sorted_keys[i] : kNoRow;
  const bool starts = key != kNoRow && (i == 0 || lookups.sorted_keys[i - 1] != key);
  const unsigned starting = __ballot_sync(0xffffffffu, starts);
  if (lane == 0) before[warp] = static_cast<std::uint32_t>(__popc(starting));
  __syncthreads();
  if (threadIdx.x == 0) {
    std::uint32_t sum = 0;
    for (std::uint32_t& b : before) {
      const std::uint32_t own = b;
      b = sum;
      sum += own;
    }
    first_run = sum == 0 ? 0 : atomicAdd(&lookups.counts[0], sum);
  }
  __syncthreads();
  if (!starts) return;
  std::uint32_t low = i + 1, high = n;  // the run ends where the first larger key lies
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    if (lookups.sorted_keys[middle] == key)
      low = middle + 1;
    else
      high = middle;
  }
  LookupRun run{i, low, 0};
  if (low - i > kSegment) {
    const std::uint32_t pieces = (low - i + kSegment - 1) / kSegment;
    run.first_segment = atomicAdd(&lookups.counts[1], pieces);
    for (std::uint32_t p = 0; p < pieces; ++p) {
      const std::uint32_t begin = i + p * kSegment;
      lookups.segments[run.first_segment + p] = {begin, low - begin > kSegment ? begin + kSegment : low};
    }
  }
  lookups.runs[first_run + before[warp] + static_cast<unsigned>(__popc(starting & ((1u << lane) - 1)))] = run;
}

unsigned blocks_for(std::int64_t threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); }

}  // namespace

Status upload_tables(const DeviceTable* tables, std::int64_t count, DeviceTable* to, cudaStream_t stream) {
  TableChunk chunk;
  for (std::int64_t first = 0; first < count; first += kTablesAtOnce) {
    chunk.count = static_cast<int>(count - first < kTablesAtOnce ? count - first : kTablesAtOnce);
    for (int i = 0; i < chunk.count; ++i) chunk.tables[i] = tables[first + i];
    if (Status s = launch("bag_backward", store_tables, dim3(1), kThreads, 0, stream, chunk, to + first); !s.ok())
      return s;
  }
  return {};
}

Status make_keys(const DeviceTable* tables, const DeviceIndices& indices, const SortedLookups& lookups,
                 float* inverse_counts, cudaStream_t stream) {
  const auto bytes = static_cast<std::size_t>(indices.num_values) * sizeof(std::uint32_t);
  if (Status s = checked(cudaMemsetAsync(lookups.keys, 0xff, bytes, stream), "bag_backward"); !s.ok()) return s;
  if (Status s = checked(cudaMemsetAsync(lookups.counts, 0, 2 * sizeof(std::uint32_t), stream), "bag_backward");
      !s.ok())
    return s;
  if (Status s = launch("bag_backward", count_up, dim3(blocks_for(indices.num_values)), kThreads, 0, stream,
                        lookups.positions, indices.num_values);
      !s.ok())
    return s;
  return launch("bag_backward", make_keys, dim3(blocks_for(indices.num_tables * indices.batch * kBagLanes)), kThreads,
                0, stream, tables, indices, lookups, inverse_counts);
}

Status find_runs(const SortedLookups& lookups, std::int64_t num_values, cudaStream_t stream) {
  return launch("bag_backward", find_runs, dim3(blocks_for(num_values)), kThreads, 0, stream, lookups,
                static_cast<std::uint32_t>(num_values));
}

}  // namespace octavo::cuda
