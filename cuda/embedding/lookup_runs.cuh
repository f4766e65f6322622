// Steps of a backward before rows change (lookup_runs.cu), in the order they run: upload_tables, make_keys,
// sort_lookups, find_runs.
#pragma once

#include "embedding/bags.cuh"
#include "embedding/lookup_runs.hpp"

namespace octavo::cuda {

constexpr int kTablesAtOnce = 128;  // as a kernel's parameters, which a CUDA graph keeps: host memory it would not
struct TableChunk {
  DeviceTable tables[kTablesAtOnce];
  int count;
};

Status upload_tables(const DeviceTable* tables, std::int64_t count, DeviceTable* to, cudaStream_t stream);

// `inverse_counts` [num_tables * batch]: 1 / lookups of bags that are means, else 1; null where none is.
Status make_keys(const DeviceTable* tables, const DeviceIndices& indices, const SortedLookups& lookups,
                 float* inverse_counts, cudaStream_t stream);

Status find_runs(const SortedLookups& lookups, std::int64_t num_values, cudaStream_t stream);

}  // namespace octavo::cuda
