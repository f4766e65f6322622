// Rows of many tables, pooled into bags or one by one, in one launch. A bag belongs to as many lanes as its table's
// rows have parts of 16 bytes; sums are FP32 and run over the bag's lookups in their order, as on the CPU.
#include <algorithm>

#include "device/device.hpp"
#include "device/launch.cuh"
#include "embedding/bags.cuh"
#include "embedding/row_formats.cuh"
#include "kernels.hpp"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTablesPerLaunch = 128;  // they are parameters of the kernel
constexpr int kAtOnce = 4;             // rows under way in a thread

// Rows of the table's output: bags, or lookups.
struct Output {
  void* data;
  std::int64_t row_stride, rows;
};

struct Call {
  DeviceTable tables[kTablesPerLaunch];
  Output outs[kTablesPerLaunch];
  DeviceIndices indices;
  std::int64_t first_table;
  bool bf16;
};

template <int kPart>
__device__ void store_part(const Output& out, std::int64_t row, int column, int count, bool bf16,
                           const float (&sum)[kPart]) {
  const std::int64_t at = row * out.row_stride + column;
  if (bf16) {
    auto* y = static_cast<__nv_bfloat16*>(out.data) + at;
    if (count >= kPart && reinterpret_cast<std::uintptr_t>(y) % (kPart * 2 < 16 ? kPart * 2 : 16) == 0) {
      unsigned words[kPart / 2];
#pragma unroll
      for (int i = 0; i < kPart / 2; ++i) {
        const __nv_bfloat162_raw pair = __floats2bfloat162_rn(sum[2 * i], sum[2 * i + 1]);
        words[i] = pair.x | static_cast<unsigned>(pair.y) << 16;
      }
      if constexpr (kPart == 4)
        *reinterpret_cast<uint2*>(y) = {words[0], words[1]};
      else
#pragma unroll
        for (int i = 0; i < kPart / 8; ++i)
          reinterpret_cast<uint4*>(y)[i] = {words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]};
      return;
    }
#pragma unroll
    for (int i = 0; i < kPart; ++i)
      if (i < count) y[i] = __float2bfloat16_rn(sum[i]);
    return;
  }
  auto* y = static_cast<float*>(out.data) + at;
  if (count >= kPart && reinterpret_cast<std::uintptr_t>(y) % 16 == 0) {
#pragma unroll
    for (int i = 0; i < kPart / 4; ++i)
      reinterpret_cast<float4*>(y)[i] = {sum[4 * i], sum[4 * i + 1], sum[4 * i + 2], sum[4 * i + 3]};
    return;
  }
#pragma unroll
  for (int i = 0; i < kPart; ++i)
    if (i < count) y[i] = sum[i];
}

// A thread's part, columns from `column` on, of the sum over lookups [begin, end). Returns how many lie outside the
// table; `reports`: this thread enters them.
template <class Format>
__device__ int add_rows(const DeviceTable& t, const DeviceIndices& in, LookupRange range, int column, bool reports,
                        float (&sum)[Format::kPart], float& bias) {
  constexpr int kPart = Format::kPart, kBytes = Format::kBytes;
  const int left = t.dim - column;
  const int valid = left >= kPart ? kBytes : (left * kBytes + kPart - 1) / kPart;
  const std::uint8_t* rows = t.rows + static_cast<std::int64_t>(column) * kBytes / kPart;
  int outside = 0;
#pragma unroll 1
  for (std::int64_t v = range.begin; v < range.end; v += kAtOnce) {
    unsigned words[kAtOnce][4];
    RowAffine affine[kAtOnce];
    bool inside[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      inside[i] = false;
      if (v + i >= range.end) continue;
      const std::int64_t row = in.values[v + i];
      inside[i] = static_cast<std::uint64_t>(row) < static_cast<std::uint64_t>(t.num_rows);
      if (inside[i]) {
        load_words<kBytes>(rows + row * t.row_bytes, valid, t.alignment, words[i]);
        affine[i] = affine_of(t, row);
        const float weight = in.weights != nullptr ? in.weights[v + i] : 1.0f;
        affine[i].scale *= weight;
        affine[i].bias *= weight;
      } else {
        ++outside;
        if (reports) report_outside(in, v + i);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (!inside[i]) continue;
      float x[kPart];
      Format::decode(words[i], x);
#pragma unroll
      for (int j = 0; j < kPart; ++j) sum[j] = fmaf(x[j], affine[i].scale, sum[j]);
      bias += affine[i].bias;
    }
  }
  return outside;
}

template <class Format, bool pooled>
__device__ void run_table(const Call& call, const DeviceTable& t, const Output& out) {
  constexpr int kPart = Format::kPart;
  const DeviceIndices& in = call.indices;
  const int lanes = t.lanes, lane = static_cast<int>(threadIdx.x) % lanes, groups = kThreads / lanes;
  const std::int64_t table = call.first_table + blockIdx.y;
  const std::int64_t first_group = static_cast<std::int64_t>(blockIdx.x) * groups + threadIdx.x / lanes;
  LookupRange all{0, 0};  // of the table
  if constexpr (!pooled) {
    const bool reports = blockIdx.x == 0 && threadIdx.x == 0;
    all = lookups_between(in, table * in.batch, (table + 1) * in.batch, reports);
    if (reports && all.end - all.begin != out.rows)
      atomicMin(&in.faults->first_bad_offset, static_cast<unsigned long long>((table + 1) * in.batch));
  }
  for (std::int64_t row = first_group; row < out.rows; row += static_cast<std::int64_t>(gridDim.x) * groups) {
    LookupRange range{all.begin + row, all.begin + row + 1};
    if constexpr (pooled)
      range = lookups_between(in, table * in.batch + row, table * in.batch + row + 1, lane == 0);
    else if (range.end > all.end)
      range.end = range.begin;
    for (int column = lane * kPart; column < t.dim; column += lanes * kPart) {
      float sum[kPart], bias = 0.0f;
#pragma unroll
      for (int j = 0; j < kPart; ++j) sum[j] = 0.0f;
      const int outside = add_rows<Format>(t, in, range, column, column == 0, sum, bias);
      const std::int64_t kept = range.end - range.begin - outside;
#pragma unroll
      for (int j = 0; j < kPart; ++j) sum[j] += bias;
      if (pooled && t.mean && kept > 1)
#pragma unroll
        for (int j = 0; j < kPart; ++j) sum[j] /= static_cast<float>(kept);
      store_part<kPart>(out, row, column, t.dim - column, call.bf16, sum);
    }
  }
}

template <bool pooled>
__global__ void __launch_bounds__(kThreads, 2) look_up(const __grid_constant__ Call call) {
  wait_for_previous_kernels();
  const DeviceTable& t = call.tables[blockIdx.y];
  const Output& out = call.outs[blockIdx.y];
  with_format(t.dtype, [&]<class Format>() { run_table<Format, pooled>(call, t, out); });
}

// out_of(t, column): the output of table t, whose columns in a pooled row start at `column`.
template <bool pooled, class Args, class OutOf>
Status run(const Args& args, bool bf16, OutOf out_of) {
  const BagIndices& in = args.indices;
  for (std::int64_t t = 0; t < in.num_tables; ++t)
    if (args.tables[t].dim > 0x7fffffff - 512) return Status::unsupported("tables: up to 2^31 - 512 columns");
  if (Status s = expect_readable(pooled ? "bag_forward" : "row_lookup", args.tables, in); !s.ok()) return s;
  const auto stream = static_cast<cudaStream_t>(args.stream);
  const DeviceGuard guard(in.offsets);
  StreamBuffer faults(stream);
  if (Status s = faults.allocate(sizeof(LookupFaults)); !s.ok()) return s;
  if (Status s = checked(cudaMemsetAsync(faults.as<void>(), 0xff, sizeof(LookupFaults), stream), "faults"); !s.ok())
    return s;
  Call call{};
  call.indices = {in.values, in.offsets, in.weights, in.batch, in.num_tables, in.num_values, faults.as<LookupFaults>()};
  call.bf16 = bf16;
  std::int64_t column = 0;
  for (std::int64_t first = 0; first < in.num_tables; first += kTablesPerLaunch) {
    const std::int64_t count = std::min<std::int64_t>(in.num_tables - first, kTablesPerLaunch);
    std::int64_t blocks = 1;
    call.first_table = first;
    for (std::int64_t i = 0; i < count; ++i) {
      const TableView& table = args.tables[first + i];
      call.tables[i] = device_table(table, column);
      call.outs[i] = out_of(first + i, column);
      column += table.dim;
      const std::int64_t groups = kThreads / call.tables[i].lanes;
      blocks = std::max(blocks, (call.outs[i].rows + groups - 1) / groups);
    }
    const dim3 grid(static_cast<unsigned>(std::min<std::int64_t>(blocks, 1 << 30)), static_cast<unsigned>(count));
    if (Status s = launch("bag_forward", look_up<pooled>, grid, kThreads, 0, stream, call); !s.ok()) return s;
  }
  std::int64_t skipped = 0;
  const Status status = report_faults(faults.as<LookupFaults>(), args.tables, in, args.bounds, skipped, stream);
  if (status.ok() && args.out_of_bounds != nullptr) *args.out_of_bounds = skipped;
  return status;
}

}  // namespace

Status bag_forward(const BagForwardArgs& args) {
  if (Status status = validate_shapes(args); !status.ok()) return status;
  if (args.indices.batch == 0 && args.indices.num_values == 0) return {};
  if (Status s = expect_aligned("bag_forward", {{"out", args.out}}); !s.ok()) return s;
  const auto element = static_cast<std::int64_t>(size_of(args.out.dtype));
  return run<true>(args, args.out.dtype == DType::bf16, [&](std::int64_t, std::int64_t column) {
    return Output{static_cast<char*>(args.out.data) + column * element, args.out.row_stride, args.indices.batch};
  });
}

Status row_lookup(const RowLookupArgs& args) {
  if (Status status = validate_shapes(args); !status.ok()) return status;
  if (args.indices.batch == 0 && args.indices.num_values == 0) return {};
  for (std::int64_t t = 0; t < args.indices.num_tables; ++t)
    if (Status s = expect_aligned("row_lookup", {{"out", args.outs[t]}}); !s.ok()) return s;
  return run<false>(args, args.outs[0].dtype == DType::bf16, [&](std::int64_t t, std::int64_t) {
    return Output{args.outs[t].data, args.outs[t].row_stride, args.outs[t].rows};
  });
}

}  // namespace octavo::cuda
