// Rows shared out among groups of threads: 8 lanes for the shortest, a warp, a block for the longest. A group reads its
// row kColumns at a time and thread, keeps the first kKept of these steps in registers and reads the others again.
#pragma once

#include "device/columns.cuh"

namespace octavo::cuda {

constexpr int kRowThreads = 256;                // of a block
constexpr std::int64_t kMostRows = 0x7fffffff;  // of a grid, a row a block
constexpr std::int64_t kMostColumns = 1 << 30;  // so that a step beyond the last column is an int too

// Every thread of the warp (kLanes <= 32) or block takes part.
template <int kLanes, class T, class Combine>
__device__ T combine_group(T value, Combine combine) {
  constexpr int kWidth = kLanes < 32 ? kLanes : 32;
#pragma unroll
  for (int step = kWidth / 2; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(0xffffffffu, value, step));
  if constexpr (kLanes > 32) {
    static_assert(kLanes == kRowThreads);
    constexpr int kWarps = kRowThreads / 32;
    __shared__ T parts[kWarps];
    __syncthreads();  // the last result was read by everyone
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    value = parts[threadIdx.x % kWarps];
#pragma unroll
    for (int step = kWarps / 2; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(0xffffffffu, value, step));
  }
  return value;
}
template <int kLanes>
__device__ float sum_group(float value) {
  return combine_group<kLanes>(value, [](float a, float b) { return a + b; });
}
template <int kLanes>
__device__ unsigned max_group(unsigned value) {
  return combine_group<kLanes>(value, [](unsigned a, unsigned b) { return a > b ? a : b; });
}

// Columns [begin, end) of a group's row. Visits get (first column, how many of kColumns lie inside, values).
template <class T, int kLanes, int kKept>
struct RowSpan {
  T* row;  // column 0
  int begin, end;
  bool aligned;  // as for load_columns, of column `begin`
  float kept[kKept][kColumns];

  __device__ int column(int step) const {
    return begin + (step * kLanes + static_cast<int>(threadIdx.x) % kLanes) * kColumns;
  }
  __device__ int count(int at) const { return end - at < kColumns ? end - at : kColumns; }

  __device__ void load() {
#pragma unroll
    for (int step = 0; step < kKept; ++step)
      if (const int at = column(step); at < end) load_columns(row + at, count(at), aligned, kept[step]);
  }

  template <class Visit>
  __device__ void each(Visit visit) {
#pragma unroll
    for (int step = 0; step < kKept; ++step)
      if (const int at = column(step); at < end) visit(at, count(at), kept[step]);
#pragma unroll 1
    for (int at = column(kKept); at < end; at += kLanes * kColumns) {
      float v[kColumns];
      load_columns(row + at, count(at), aligned, v);
      visit(at, count(at), v);
    }
  }

  // The visit changes the values, which lie in memory where they are not kept.
  template <class Visit>
  __device__ void update(Visit visit) {
#pragma unroll
    for (int step = 0; step < kKept; ++step)
      if (const int at = column(step); at < end) visit(at, count(at), kept[step]);
#pragma unroll 1
    for (int at = column(kKept); at < end; at += kLanes * kColumns) {
      float v[kColumns];
      load_columns(row + at, count(at), aligned, v);
      visit(at, count(at), v);
      store_columns(row + at, count(at), aligned, v);
    }
  }
};

// run<kLanes, kKept>() for rows, or parts of rows with statistics of their own, of `columns` columns.
template <class Run>
auto with_row_groups(std::int64_t columns, Run&& run) {
  if (columns <= 8 * kColumns) return run.template operator()<8, 1>();
  if (columns <= 16 * kColumns) return run.template operator()<16, 1>();
  if (columns <= 32 * kColumns) return run.template operator()<32, 1>();
  if (columns <= 4 * 32 * kColumns) return run.template operator()<32, 4>();
  return run.template operator()<kRowThreads, 4>();
}

// Blocks for `rows` groups of kLanes threads.
template <int kLanes>
unsigned row_blocks(std::int64_t rows) {
  constexpr std::int64_t kGroups = kRowThreads / kLanes;
  return static_cast<unsigned>((rows + kGroups - 1) / kGroups);
}

}  // namespace octavo::cuda
