// The tensor core's product of 16 x 16 by 16 x 8 BF16, which every device since Ampere has. Of a warp's lane l with
// g = l / 4 and t = l % 4, each register two neighbours, the lower index in the lower half:
//   a: A[g][2t, 2t + 1], A[g + 8][2t, ...], A[g][2t + 8, ...], A[g + 8][2t + 8, ...]
//   b: B[2t, 2t + 1][g], B[2t + 8, ...][g]
//   c: C[g][2t], C[g][2t + 1], C[g + 8][2t], C[g + 8][2t + 1]
#pragma once

#include "device/launch.cuh"

namespace octavo::cuda {

// c += a b. Every lane of the warp takes part.
__device__ inline void multiply_add(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef OCTAVO_CUDA_EMULATOR
  cuda_emulator::multiply_add(c, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace octavo::cuda
