// Rows of operands in shared memory, in the type that a class multiplies: kRowBytes from row to row, 128 of them
// values, zeros where the operand ends. The rest spreads rows over the banks.
#pragma once

#include "device/columns.cuh"
#include "device/divisor.cuh"
#include "pairwise/pairs.cuh"

namespace octavo::cuda {

constexpr int kPairThreads = 256;
constexpr int kRowBytes = 128 + 16;

// x or y of every sample.
struct PairOperand {
  const void* data;
  // line: elements from row to row; `across`, where a column's elements are neighbours: from column to column; of a
  // triangle: from element to element.
  std::int64_t batch_stride, line_stride;
  int rows, cols;
  Pairs pairs;  // not all: the triangle of a symmetric [rows, rows] with zeros on its diagonal
  bool bf16, across;
  bool aligned;  // groups of eight that start at a multiple of eight are at multiples of 16 bytes
};

// What a block stages of an operand: `heights` rows of each of its samples, `eights` groups of eight columns.
struct Panel {
  std::int64_t first_sample;
  int samples;                        // in this block; fewer in the last one
  int first_row, first_column;        // multiples of eight
  int height;                         // a multiple of 16
  int items;                          // groups of eight elements
  Divisor by_eights, by_height;       // along rows
  Divisor by_row_groups, by_columns;  // across
};

struct Group {
  int sample, row, column;  // from the panel's corner
};

template <bool across>
__device__ inline Group group_of(const Panel& p, int item) {
  if constexpr (across) {
    const auto [line, eight] = p.by_row_groups(item);
    const auto [sample, column] = p.by_columns(line);
    return {sample, eight * kColumns, column};
  } else {
    const auto [line, eight] = p.by_eights(item);
    const auto [sample, row] = p.by_height(line);
    return {sample, row, eight * kColumns};
  }
}

// Eight elements of a staged row, or one of each of eight staged rows.
template <class Element, bool across>
struct StagedGroup {
  Element* to;
  __device__ StagedGroup(unsigned char* rows, int height, const Group& g)
      : to(reinterpret_cast<Element*>(rows + (g.sample * height + g.row) * kRowBytes) + g.column) {}
  __device__ void put_all(const float (&v)[kColumns]) const {
    if constexpr (across) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) from_float(v[j], to + j * (kRowBytes / static_cast<int>(sizeof(Element))));
    } else {
      store_columns(to, kColumns, true, v);
    }
  }
};

template <class T>
__device__ inline float triangle_at(const PairOperand& o, const T* packed, int i, int j) {
  if (i == j) return 0.0f;
  const bool swapped = !keeps(o.pairs, i, j);
  const std::int64_t at = row_start(o.pairs, swapped ? j : i, o.rows) + (swapped ? i : j);
  return to_float(packed[at * o.line_stride]);
}

template <class Element, class T, bool across>
class Stager {
 public:
  __device__ Stager(const PairOperand& o, const Panel& p, unsigned char* rows) : o_(o), p_(p), rows_(rows) {}

  __device__ void run() const {
    constexpr int kAtOnce = 2;  // groups under way in a thread
#pragma unroll 1
    for (int first = static_cast<int>(threadIdx.x); first < p_.items; first += kAtOnce * kPairThreads) {
      float v[kAtOnce][kColumns];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        if (const Source s = source_of(first + i * kPairThreads); s.whole) load_columns(s.line, kColumns, true, v[i]);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        if (const Source s = source_of(first + i * kPairThreads); s.whole) staged(s).put_all(v[i]);
#pragma unroll 1
      for (int i = 0; i < kAtOnce; ++i)
        if (const int item = first + i * kPairThreads; item < p_.items)
          if (const Source s = source_of(item); !s.whole) staged(s).put_all(Part(o_, s).v);
    }
  }

 private:
  struct Source {
    Group group;
    const T* line;  // the group's first element; of a triangle, the sample's
    int row, column, count;
    bool whole;  // eight elements, 16-byte aligned
  };

  __device__ Source source_of(int item) const {
    Source s{};
    if (item >= p_.items) return s;
    s.group = group_of<across>(p_, item);
    s.row = p_.first_row + s.group.row;
    s.column = p_.first_column + s.group.column;
    if (s.group.sample >= p_.samples || s.row >= o_.rows || s.column >= o_.cols) return s;
    const int left = across ? o_.rows - s.row : o_.cols - s.column;
    s.count = left < kColumns ? left : kColumns;
    s.line = static_cast<const T*>(o_.data) + (p_.first_sample + s.group.sample) * o_.batch_stride;
    if (o_.pairs != Pairs::all) return s;
    s.line += (across ? s.column : s.row) * o_.line_stride + (across ? s.row : s.column);
    s.whole = o_.aligned && s.count == kColumns;
    return s;
  }

  __device__ StagedGroup<Element, across> staged(const Source& s) const { return {rows_, p_.height, s.group}; }

  // What is there of a group, zeros for the rest.
  struct Part {
    float v[kColumns];
    __device__ Part(const PairOperand& o, const Source& s) {
      if (!across && o.pairs != Pairs::all) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) v[j] = j < s.count ? triangle_at(o, s.line, s.row, s.column + j) : 0.0f;
      } else {
        load_columns(s.line, s.count, false, v);
      }
    }
  };

  const PairOperand& o_;
  const Panel& p_;
  unsigned char* rows_;
};

// Row r of the panel's sample s goes to rows + (s height + r) kRowBytes.
template <class Element>
__device__ void stage(const PairOperand& o, const Panel& p, unsigned char* rows) {
  if (o.bf16)
    o.across ? Stager<Element, __nv_bfloat16, true>(o, p, rows).run()
             : Stager<Element, __nv_bfloat16, false>(o, p, rows).run();
  else
    o.across ? Stager<Element, float, true>(o, p, rows).run() : Stager<Element, float, false>(o, p, rows).run();
}

}  // namespace octavo::cuda
