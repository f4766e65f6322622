// Panels of kLanes rows that lie across: panel[k * kLanes + r] is element k of row r, so that what is done to every row
// is done to kLanes of them at once, and a sum over a row needs no sum over lanes.
//
// In an anonymous namespace, as linear_vector.hpp.
#pragma once

#include "cpu/generic/linear_vector.hpp"
#include "octavo/float8.hpp"
#include "octavo/threading.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

[[gnu::always_inline]] inline float as_float(float x) { return x; }
[[gnu::always_inline]] inline float as_float(std::uint16_t x) { return decode_bf16(x); }

[[gnu::always_inline]] inline void from_float(float x, float* to) { *to = x; }
[[gnu::always_inline]] inline void from_float(float x, std::uint16_t* to) { *to = encode_bf16(x); }

[[gnu::always_inline]] inline Four load4(const float* p) {
  Four v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
[[gnu::always_inline]] inline Four load4(const std::uint16_t* p) {
  return Four{decode_bf16(p[0]), decode_bf16(p[1]), decode_bf16(p[2]), decode_bf16(p[3])};
}

[[gnu::always_inline]] inline void store4(float* p, Four v) { std::memcpy(p, &v, sizeof v); }
[[gnu::always_inline]] inline void store4(std::uint16_t* p, Four v) {
  for (int i = 0; i < 4; ++i) p[i] = encode_bf16(v[i]);
}

[[gnu::always_inline]] inline void transpose(Four (&v)[4]) {
  const Four ab = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5), AB = __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
  const Four cd = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5), CD = __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
  v[0] = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
  v[1] = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  v[2] = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);
  v[3] = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);
}

// Four contiguous rows to four neighbouring lanes, `panel` at the first of them.
template <bool kAdd, class T>
[[gnu::always_inline]] inline void pack4(const T* row, std::int64_t stride, std::int64_t depth, float* panel) {
  std::int64_t k = 0;
  for (; k + 4 <= depth; k += 4) {
    Four v[4] = {load4(row + k), load4(row + stride + k), load4(row + 2 * stride + k), load4(row + 3 * stride + k)};
    transpose(v);
    for (int i = 0; i < 4; ++i) {
      float* to = panel + (k + i) * kLanes;
      store4(to, kAdd ? load4(to) + v[i] : v[i]);
    }
  }
  for (; k < depth; ++k)
    for (int r = 0; r < 4; ++r) {
      const float v = as_float(row[r * stride + k]);
      float& to = panel[k * kLanes + r];
      to = kAdd ? to + v : v;
    }
}

// Rows of a matrix, one of whose strides is 1, into the panel's lanes [lanes.begin, lanes.end), or onto what is there.
template <bool kAdd, class T>
void pack_lanes(const T* rows, std::int64_t row_stride, std::int64_t col_stride, Range lanes, std::int64_t depth,
                float* panel) {
  const std::int64_t count = lanes.end - lanes.begin;
  panel += lanes.begin;
  if (row_stride == 1) {
    if (count == kLanes) {
      for (std::int64_t k = 0; k < depth; ++k) {
        const Vec v = load(rows + k * col_stride);
        store(panel + k * kLanes, kAdd ? load(panel + k * kLanes) + v : v);
      }
    } else {
      for (std::int64_t k = 0; k < depth; ++k) {
        const Vec v = load_part(rows + k * col_stride, count);
        store_part(panel + k * kLanes, kAdd ? load_part(panel + k * kLanes, count) + v : v, count);
      }
    }
    return;
  }
  std::int64_t r = 0;
  if (col_stride == 1)
    for (; r + 4 <= count; r += 4) pack4<kAdd>(rows + r * row_stride, row_stride, depth, panel + r);
  for (; r < count; ++r)
    for (std::int64_t k = 0; k < depth; ++k) {
      const float v = as_float(rows[r * row_stride + k * col_stride]);
      float& to = panel[k * kLanes + r];
      to = kAdd ? to + v : v;
    }
}

// The panel's first `count` rows back to contiguous rows of `depth` elements.
template <class T>
void unpack_rows(const float* panel, std::int64_t count, std::int64_t depth, T* rows) {
  std::int64_t r = 0;
  for (; r + 4 <= count; r += 4) {
    T* to = rows + r * depth;
    std::int64_t k = 0;
    for (; k + 4 <= depth; k += 4) {
      Four v[4] = {load4(panel + k * kLanes + r), load4(panel + (k + 1) * kLanes + r),
                   load4(panel + (k + 2) * kLanes + r), load4(panel + (k + 3) * kLanes + r)};
      transpose(v);
      for (int i = 0; i < 4; ++i) store4(to + i * depth + k, v[i]);
    }
    for (; k < depth; ++k)
      for (int i = 0; i < 4; ++i) from_float(panel[k * kLanes + r + i], to + i * depth + k);
  }
  for (; r < count; ++r)
    for (std::int64_t k = 0; k < depth; ++k) from_float(panel[k * kLanes + r], rows + r * depth + k);
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA_NAMESPACE
