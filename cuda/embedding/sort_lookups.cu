// The sort of a backward's lookups, by CUB.
#include <cub/device/device_radix_sort.cuh>

#include "device/device.hpp"
#include "embedding/lookup_runs.hpp"

namespace octavo::cuda {

Status sort_lookups(const SortedLookups& lookups, std::int64_t num_values, int key_bits, cudaStream_t stream) {
  const auto sort = [&](void* scratch, std::size_t& bytes) {
    return cub::DeviceRadixSort::SortPairs(scratch, bytes, static_cast<const std::uint32_t*>(lookups.keys),
                                           lookups.sorted_keys, static_cast<const std::uint32_t*>(lookups.positions),
                                           lookups.sorted_positions, static_cast<int>(num_values), 0, key_bits, stream);
  };
  std::size_t bytes = 0;
  StreamBuffer scratch(stream);
  if (Status s = checked(sort(nullptr, bytes), "sort_lookups"); !s.ok()) return s;
  if (Status s = scratch.allocate(bytes); !s.ok()) return s;
  return checked(sort(scratch.as<void>(), bytes), "sort_lookups");
}

}  // namespace octavo::cuda
