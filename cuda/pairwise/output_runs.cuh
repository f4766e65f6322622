// A block's products on their way out: collected in shared memory as they will lie in the output, then copied 16 bytes
// at a time. A run is what lies together in both: all of a sample, or the kept columns of one row of the block's tile.
#pragma once

#include <cstdint>

#include "device/columns.cuh"
#include "device/divisor.cuh"
#include "pairwise/pairs.cuh"

namespace octavo::cuda {

struct PairOutput {
  unsigned char* data;
  std::int64_t batch_stride, row_stride;  // elements; row_stride: of all pairs
  int rows, columns;                      // F, G
  Pairs pairs;
  bool bf16;
  bool whole;        // runs are samples
  int run_elements;  // of a whole sample
  int run_bytes;     // from run to run in shared memory, a multiple of 16, room for 15 bytes before the first element
  Divisor by_words;  // of 16 bytes in a run
  constexpr int element() const { return bf16 ? 2 : 4; }
};

// The block's part of the output.
struct OutputTile {
  std::int64_t first_sample;
  int samples, first_row, first_column, height, width;
  Divisor by_height;
};

struct Run {
  unsigned char* start;  // in the output
  int bytes;
  int first;  // column of the first element, of a run of one row
};

__device__ inline Run run_of(const PairOutput& o, const OutputTile& t, int sample, int row) {
  const int element = o.element();
  std::int64_t at = (t.first_sample + sample) * o.batch_stride;
  if (o.whole) return {o.data + at * element, o.run_elements * element, 0};
  const int i = t.first_row + row;
  int first = t.first_column, end = first + t.width < o.columns ? first + t.width : o.columns;
  if (o.pairs == Pairs::lower && end > i) end = i;
  if (o.pairs == Pairs::upper && first < i + 1) first = i + 1;
  if (i >= o.rows || end < first) end = first;
  at += (o.pairs == Pairs::all ? i * o.row_stride : row_start(o.pairs, i, o.columns)) + first;
  return {o.data + at * element, (end - first) * element, first};
}

__device__ inline int before_first_word(const Run& run) {
  return static_cast<int>(reinterpret_cast<std::uintptr_t>(run.start) % 16);
}

// Where columns of one row go in shared memory.
class RowInShared {
 public:
  __device__ RowInShared(const PairOutput& o, const OutputTile& t, unsigned char* shared, int sample, int row)
      : o_(o), i_(t.first_row + row), exists_(i_ < o.rows) {
    const Run run = run_of(o, t, sample, row);
    const int index = o.whole ? sample : sample * t.height + row;
    int first = run.first;
    if (o.whole)
      first =
          -static_cast<int>(o.pairs == Pairs::all ? std::int64_t{i_} * o.columns : row_start(o.pairs, i_, o.columns));
    to_ = shared + index * o.run_bytes + before_first_word(run);
    first_ = first;
  }

  __device__ void put(int j, float value) const {
    if (!exists_ || j >= o_.columns || !keeps(o_.pairs, i_, j)) return;
    if (o_.bf16)
      from_float(value, reinterpret_cast<__nv_bfloat16*>(to_) + (j - first_));
    else
      from_float(value, reinterpret_cast<float*>(to_) + (j - first_));
  }

 private:
  const PairOutput& o_;
  unsigned char* to_;
  int i_, first_;
  bool exists_;
};

// The part of a word that belongs to the run, where that is not all of it.
template <class T>
__device__ void copy_part(const unsigned char* from, unsigned char* to, int begin, int end) {
  for (int at = begin; at < end; at += static_cast<int>(sizeof(T)))
    *reinterpret_cast<T*>(to + at) = *reinterpret_cast<const T*>(from + at);
}

// All threads, after what was put is visible.
__device__ inline void copy_runs(const PairOutput& o, const OutputTile& t, const unsigned char* shared) {
  const int words = o.run_bytes / 16, runs = o.whole ? t.samples : t.samples * t.height;
#pragma unroll 1
  for (int item = static_cast<int>(threadIdx.x); item < runs * words; item += static_cast<int>(blockDim.x)) {
    const auto [index, word] = o.by_words(item);
    const auto [sample, row] = t.by_height(index);
    const Run run = o.whole ? run_of(o, t, index, 0) : run_of(o, t, sample, row);
    const int before = before_first_word(run), begin = before - word * 16, end = begin + run.bytes;
    const unsigned char* from = shared + index * o.run_bytes + word * 16;
    unsigned char* to = run.start - begin;
    if (begin <= 0 && end >= 16)
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    else if (o.bf16)
      copy_part<std::uint16_t>(from, to, begin < 0 ? 0 : begin, end < 16 ? end : 16);
    else
      copy_part<float>(from, to, begin < 0 ? 0 : begin, end < 16 ? end : 16);
  }
}

}  // namespace octavo::cuda
