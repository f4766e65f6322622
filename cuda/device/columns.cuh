// Eight neighbouring columns of a row in a thread's registers: what every row-wise kernel reads and writes at a time.
// 16 bytes of BF16, twice 16 of FP32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "octavo/types.hpp"

namespace octavo::cuda {

constexpr int kColumns = 8;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

__device__ inline void from_float(float x, float* to) { *to = x; }
__device__ inline void from_float(float x, __nv_bfloat16* to) { *to = __float2bfloat16_rn(x); }

// sizeof(T) * 8 bytes as one or two accesses of 16.
template <class T>
struct alignas(16) Eight {
  T at[kColumns];
};

__device__ inline void copy_eight(const uint4* from, uint4* to, int words) {
  to[0] = from[0];
  if (words == 2) to[1] = from[1];
}

// The first `count` columns from p on, zeros after them. `aligned`: p is a multiple of 16 bytes.
template <class T>
__device__ inline void load_columns(const T* p, int count, bool aligned, float (&v)[kColumns]) {
  if (aligned && count >= kColumns) {
    Eight<T> raw;
    copy_eight(reinterpret_cast<const uint4*>(p), reinterpret_cast<uint4*>(raw.at), sizeof(raw) / 16);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) v[j] = to_float(raw.at[j]);
  } else {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) v[j] = j < count ? to_float(p[j]) : 0.0f;
  }
}

template <class T>
__device__ inline void store_columns(T* p, int count, bool aligned, const float (&v)[kColumns]) {
  if (aligned && count >= kColumns) {
    Eight<T> raw;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) from_float(v[j], raw.at + j);
    copy_eight(reinterpret_cast<const uint4*>(raw.at), reinterpret_cast<uint4*>(p), sizeof(raw) / 16);
  } else {
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      if (j < count) from_float(v[j], p + j);
  }
}

// Of a matrix whose type is known when it runs, element `at`.
struct FloatMatrix {
  void* data;  // null: none
  std::int64_t row_stride;
  bool bf16, aligned;  // aligned: columns 0, 8, 16, ... of every row are multiples of 16 bytes

  __device__ void load(std::int64_t row, int column, int count, float (&v)[kColumns]) const {
    const std::int64_t at = row * row_stride + column;
    if (bf16)
      load_columns(static_cast<const __nv_bfloat16*>(data) + at, count, aligned && column % kColumns == 0, v);
    else
      load_columns(static_cast<const float*>(data) + at, count, aligned && column % kColumns == 0, v);
  }
  // `offset`: of the matrix from this one, in elements, of those that keep it aligned.
  __device__ void store(std::int64_t row, int column, int count, const float (&v)[kColumns],
                        std::int64_t offset = 0) const {
    const std::int64_t at = offset + row * row_stride + column;
    if (bf16)
      store_columns(static_cast<__nv_bfloat16*>(data) + at, count, aligned && column % kColumns == 0, v);
    else
      store_columns(static_cast<float*>(data) + at, count, aligned && column % kColumns == 0, v);
  }
};

inline bool is_aligned(const void* data, std::int64_t row_bytes) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && row_bytes % 16 == 0;
}

inline FloatMatrix float_matrix(const MatrixView& v) {
  const auto element = static_cast<std::int64_t>(size_of(v.dtype));
  return {v.data, v.row_stride, v.dtype == DType::bf16, is_aligned(v.data, v.rows > 1 ? v.row_stride * element : 0)};
}

}  // namespace octavo::cuda
