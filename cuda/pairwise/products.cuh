// What a warp does with 16 staged rows of x and 16 of y, in the two classes. Lane l has, with g = l / 4 and t = l % 4,
// c[h][2r + e] = the product of rows g + 8r and 8h + 2t + e, as the tensor core lays it out.
#pragma once

#include "device/mma.cuh"
#include "pairwise/staging.cuh"

namespace octavo::cuda {

constexpr int kUnit = 16;

using UnitSums = float[2][4];

struct Bf16Products {
  using Element = __nv_bfloat16;
  static constexpr int kDepth = 64;  // columns of a panel
  static constexpr int kBlocks = 4;  // of a multiprocessor, whose registers they share

  __device__ static unsigned pair(const unsigned char* rows, int row, int column) {
    return *reinterpret_cast<const unsigned*>(rows + row * kRowBytes + column * 2);
  }
  // Of `columns` columns, rounded up to the step of the tensor core.
  __device__ static void add(const unsigned char* x, const unsigned char* y, int columns, UnitSums& c) {
    const int g = static_cast<int>(threadIdx.x) % 32 / 4, two = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll 1
    for (int k = two; k < columns + two; k += 16) {
      const unsigned a[4] = {pair(x, g, k), pair(x, g + 8, k), pair(x, g, k + 8), pair(x, g + 8, k + 8)};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const unsigned b[2] = {pair(y, 8 * h + g, k), pair(y, 8 * h + g, k + 8)};
        multiply_add(c[h], a, b);
      }
    }
  }
};

struct Fp32Products {
  using Element = float;
  static constexpr int kDepth = 32;
  static constexpr int kBlocks = 3;

  __device__ static float4 four(const unsigned char* rows, int row, int column) {
    return *reinterpret_cast<const float4*>(rows + row * kRowBytes + column * 4);
  }
  // One after the other in the order of the columns, each rounded once, as on the CPU.
  __device__ static float dot(const float4& a, const float4& b, float sum) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
  }
  __device__ static void add(const unsigned char* x, const unsigned char* y, int columns, UnitSums& c) {
    const int g = static_cast<int>(threadIdx.x) % 32 / 4, two = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll 1
    for (int k = 0; k < columns; k += 4) {
      const float4 a[2] = {four(x, g, k), four(x, g + 8, k)};
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float4 b = four(y, 8 * h + two + e, k);
          c[h][e] = dot(a[0], b, c[h][e]);
          c[h][2 + e] = dot(a[1], b, c[h][2 + e]);
        }
    }
  }
};

}  // namespace octavo::cuda
