// Where a bag's lookups lie, checked as far as the kernel's safety goes.
#pragma once

#include "embedding/device_tables.hpp"

namespace octavo::cuda {

struct DeviceIndices {
  const std::int64_t *values, *offsets;
  const float* weights;  // null: all 1
  std::int64_t batch, num_tables, num_values;
  LookupFaults* faults;
};

struct LookupRange {
  std::int64_t begin, end;
};

// Of offsets [at] and [at + 1]; empty where they make no sense. `reports`: this thread enters what is wrong.
__device__ inline LookupRange lookups_between(const DeviceIndices& in, std::int64_t at, std::int64_t next,
                                              bool reports) {
  const std::int64_t begin = in.offsets[at], end = in.offsets[next];
  const bool fits = begin >= 0 && begin <= end && end <= in.num_values;
  if (reports) {
    if (!fits) atomicMin(&in.faults->first_bad_offset, static_cast<unsigned long long>(next));
    if (at == 0 && begin != 0) atomicMin(&in.faults->first_bad_offset, 0ull);
    if (next == in.num_tables * in.batch && end != in.num_values)
      atomicMin(&in.faults->first_bad_offset, static_cast<unsigned long long>(next));
  }
  return fits ? LookupRange{begin, end} : LookupRange{0, 0};
}

__device__ inline void report_outside(const DeviceIndices& in, std::int64_t position) {
  atomicAdd(&in.faults->outside, 1ull);
  atomicMin(&in.faults->first_outside, static_cast<unsigned long long>(position));
}

}  // namespace octavo::cuda
