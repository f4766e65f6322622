// The lookups of a backward grouped by the row they touch: keys, their sort, and runs of one row.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "embedding/device_tables.hpp"

namespace octavo::cuda {

constexpr std::uint32_t kNoRow = 0xffffffff;  // key of a lookup outside its table; sorts last
// A run of more lookups than this is summed in segments of that many, which are then added in order.
constexpr std::uint32_t kSegment = 512;

struct LookupRun {
  std::uint32_t begin, end;     // of the sorted lookups
  std::uint32_t first_segment;  // of a run that has segments
};
struct LookupSegment {
  std::uint32_t begin, end;
};

// All in one allocation of scratch memory.
struct SortedLookups {
  std::uint32_t *keys, *sorted_keys;            // [num_values]: row number among those of all tables
  std::uint32_t *positions, *sorted_positions;  // [num_values]: of the lookup in `values`
  std::uint32_t* bags;                          // [num_values] by position: table * batch + bag
  LookupRun* runs;                              // [num_values]
  LookupSegment* segments;                      // [most_segments(num_values)]
  std::uint32_t* counts;                        // of runs and of segments
};
constexpr std::int64_t most_segments(std::int64_t num_values) { return 2 * num_values / kSegment + 1; }

// cuda/embedding/sort_lookups.cu: stable, by the lowest `key_bits` bits.
Status sort_lookups(const SortedLookups& lookups, std::int64_t num_values, int key_bits, cudaStream_t stream);

}  // namespace octavo::cuda
