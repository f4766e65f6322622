// Ids of dynamic tables to rows, by copies of the slots of their IdMaps: what a lookup on the device needs where
// nothing is admitted. A thread takes a lookup; a probe is one access of 16 bytes, and the next slot lies in the same
// sector.
#include <algorithm>

#include "device/device.hpp"
#include "device/launch.cuh"
#include "id_hash.hpp"
#include "kernels.hpp"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kTablesPerLaunch = 512;  // they are parameters of the kernel

struct Call {
  IdSlots maps[kTablesPerLaunch];
  const std::int64_t *values, *offsets;
  std::int64_t* rows;
  std::int64_t batch, num_values;
  std::int64_t first_table, num_tables, all_tables;  // of this launch, of the call
};

// The last table that starts at or before the position: empty ones come first.
__device__ std::int64_t table_at(const Call& call, std::int64_t position) {
  std::int64_t low = 0, high = call.all_tables;
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    if (call.offsets[middle * call.batch] <= position)
      low = middle;
    else
      high = middle;
  }
  return low;
}

__device__ std::int64_t row_of(const IdSlots& map, std::int64_t id) {
  const auto count = static_cast<std::uint64_t>(map.count);
  for (std::uint64_t at = home_slot(id, count);; at = at + 1 == count ? 0 : at + 1) {
    const IdSlot slot = map.slots[at];
    if (slot.row < 0) return 0;
    if (slot.id == id) return slot.row + 1;
  }
}

__global__ void __launch_bounds__(kThreads) find_each(const __grid_constant__ Call call) {
  wait_for_previous_kernels();
  const std::int64_t held = call.offsets[call.all_tables * call.batch];
  const auto step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t v = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; v < call.num_values;
       v += step) {
    const std::int64_t table = v < held ? table_at(call, v) : call.first_table;
    const std::int64_t own = table - call.first_table;
    if (own < 0 || own >= call.num_tables) continue;
    const std::int64_t id = call.values[v];
    call.rows[v] = v >= held ? -1 : call.maps[own].slots == nullptr ? id : row_of(call.maps[own], id);
  }
}

}  // namespace

Status find_rows(const FindRowsArgs& args) {
  const BagIndices& in = args.indices;
  if (in.num_values == 0) return {};
  if (Status s = expect_aligned("find_rows", {{"values", in.values, 8}, {"offsets", in.offsets, 8}}); !s.ok()) return s;
  const DeviceGuard guard(in.values);
  Call call{};
  call.values = in.values;
  call.offsets = in.offsets;
  call.rows = args.rows;
  call.batch = in.batch;
  call.num_values = in.num_values;
  call.all_tables = in.num_tables;
  const std::int64_t blocks = std::min<std::int64_t>((in.num_values + kThreads - 1) / kThreads, 1 << 20);
  for (std::int64_t first = 0; first < in.num_tables; first += kTablesPerLaunch) {
    call.first_table = first;
    call.num_tables = std::min(in.num_tables - first, kTablesPerLaunch);
    std::copy_n(args.maps + first, call.num_tables, call.maps);
    if (Status s = launch("find_rows", find_each, dim3(static_cast<unsigned>(blocks)), kThreads, 0,
                          static_cast<cudaStream_t>(args.stream), call);
        !s.ok())
      return s;
  }
  return {};
}

}  // namespace octavo::cuda
