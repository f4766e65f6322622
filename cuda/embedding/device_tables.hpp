// Tables as the embedding kernels see them, and what a kernel found wrong with the indices, which only the device
// reads.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "octavo/embedding.hpp"

namespace octavo::cuda {

struct DeviceTable {
  std::uint8_t* rows;
  float* scale;
  const std::uint8_t* exponents;
  float* state;
  std::int64_t num_rows, row_bytes;  // row_bytes: from one row to the next
  std::int64_t scale_stride;         // floats
  std::uint64_t random;              // random_table of a backward
  std::uint32_t first_key;           // of a backward: number of its row 0 among the rows of all tables
  std::int32_t dim, column;          // column: first one of the pooled output
  DType dtype;
  bool mean;
  std::uint8_t alignment;  // of every row: 16, 4 or 1 bytes
  std::uint8_t lanes;      // threads that read a row of it
};

// `column`: first one of the output.
DeviceTable device_table(const TableView& table, std::int64_t column);

// Whether a device can read and write at the addresses of indices and tables.
Status expect_readable(const char* what, const TableView* tables, const BagIndices& indices);

// Filled with ones before a kernel runs: numbers count from -1, positions are the least one found.
struct LookupFaults {
  unsigned long long outside, first_outside, first_bad_offset;
};

// Waits for the stream where `bounds` wants to know, and says what was wrong; `skipped`: how many lookups lie outside.
// Status of a stream under capture: unsupported, for nothing can be read back there.
Status report_faults(const LookupFaults* device, const TableView* tables, const BagIndices& indices, Bounds bounds,
                     std::int64_t& skipped, cudaStream_t stream);

}  // namespace octavo::cuda
