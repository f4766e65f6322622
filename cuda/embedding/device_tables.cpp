#include "embedding/device_tables.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "device/device.hpp"

namespace octavo::cuda {
namespace {

using std::to_string;

template <class T>
Status fetch(const T* from, std::size_t count, T* to, cudaStream_t stream) {
  if (Status s = checked(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyDeviceToHost, stream), "indices");
      !s.ok())
    return s;
  return checked(cudaStreamSynchronize(stream), "indices");
}

Status describe_outside(const TableView* tables, const BagIndices& in, std::int64_t position, cudaStream_t stream) {
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(in.num_tables * in.batch + 1));
  std::int64_t row = 0;
  if (Status s = fetch(in.offsets, offsets.size(), offsets.data(), stream); !s.ok()) return s;
  if (Status s = fetch(in.values + position, 1, &row, stream); !s.ok()) return s;
  const auto bag = std::upper_bound(offsets.begin(), offsets.end(), position) - offsets.begin() - 1;
  const TableView& table = tables[bag / in.batch];
  const std::string name = table.name != nullptr ? "'" + std::string(table.name) + "'" : to_string(bag / in.batch);
  return Status::range("values: table " + name + ", bag " + to_string(bag % in.batch) + ": row index " +
                       to_string(row) + " at position " + to_string(position) + " is outside [0, " +
                       to_string(table.num_rows) + "); fix the ids, or set bounds to 'warn' or 'ignore'");
}

std::uint8_t lanes_for(const TableView& table) {
  const std::int64_t columns = table.dtype == DType::f32                                 ? 4
                               : table.dtype == DType::bf16 || table.dtype == DType::f16 ? 8
                                                                                         : 16;
  std::int64_t lanes = 1;
  while (lanes < 32 && lanes * columns < table.dim) lanes *= 2;
  return static_cast<std::uint8_t>(lanes);
}

}  // namespace

DeviceTable device_table(const TableView& table, std::int64_t column) {
  const std::int64_t bytes = table.row_stride * static_cast<std::int64_t>(size_of(table.dtype));
  const std::uintptr_t both = reinterpret_cast<std::uintptr_t>(table.rows) | static_cast<std::uintptr_t>(bytes);
  return {static_cast<std::uint8_t*>(table.rows),
          table.scale,
          table.scale_exponents,
          table.optimizer_state,
          table.num_rows,
          bytes,
          table.scale_stride,
          0,
          0,
          static_cast<std::int32_t>(table.dim),
          static_cast<std::int32_t>(column),
          table.dtype,
          table.pooling == Pooling::mean,
          static_cast<std::uint8_t>(both % 16 == 0  ? 16
                                    : both % 4 == 0 ? 4
                                                    : 1),
          lanes_for(table)};
}

Status expect_readable(const char* what, const TableView* tables, const BagIndices& in) {
  if (Status s =
          expect_aligned(what, {{"values", in.values, 8}, {"offsets", in.offsets, 8}, {"weights", in.weights, 4}});
      !s.ok())
    return s;
  for (std::int64_t t = 0; t < in.num_tables; ++t)
    if (Status s = expect_aligned(what, {{"the rows of a table", tables[t].rows, size_of(tables[t].dtype)},
                                         {"the scales of a table", tables[t].scale, 4},
                                         {"the optimizer state of a table", tables[t].optimizer_state, 4}});
        !s.ok())
      return s;
  return {};
}

Status report_faults(const LookupFaults* device, const TableView* tables, const BagIndices& indices, Bounds bounds,
                     std::int64_t& skipped, cudaStream_t stream) {
  skipped = 0;
  if (bounds == Bounds::ignore) return {};
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  if (Status s = checked(cudaStreamIsCapturing(stream, &capture), "indices"); !s.ok()) return s;
  if (capture != cudaStreamCaptureStatusNone)
    return Status::unsupported(
        "bounds: 'error' and 'warn' wait for the device to tell how many indices lie outside, which a CUDA graph "
        "cannot capture; use bounds='ignore'");
  LookupFaults faults{};
  if (Status s = fetch(device, 1, &faults, stream); !s.ok()) return s;
  constexpr auto kNone = ~0ull;
  if (faults.first_bad_offset != kNone)
    return Status::invalid("offsets: must start at 0, never decrease and end at the number of values (" +
                           to_string(indices.num_values) + "), but offsets[" + to_string(faults.first_bad_offset) +
                           "] does not fit");
  skipped = static_cast<std::int64_t>(faults.outside + 1);
  if (skipped == 0 || bounds == Bounds::warn) return {};
  return describe_outside(tables, indices, static_cast<std::int64_t>(faults.first_outside), stream);
}

}  // namespace octavo::cuda
