// Runs kernels on the CPU (prelude.hpp), and what tests may ask of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "prelude.hpp"

namespace octavo::cuda_emulator {

// `thread` runs once for each thread of the grid. False for a launch that a device would refuse.
bool run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& thread);

// The order in which blocks and threads take their turns. 0: ascending, warps abreast. Any other number: a random order
// of its own, in which a warp runs as far as the block's next barrier before another one starts. What a kernel computes
// must not depend on it.
void order_threads(std::uint64_t seed);

// In the place of cuda/device/mma.cuh's instruction.
void multiply_add(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]);

// What the emulated runtime (runtime.cpp) tells, and what it was asked.
struct Runtime {
  int capability_major = 9;
  bool capturing = false;
  int refused_from = 0, refusals = 0;  // the allocation from which on so many fail for want of memory
  int allocations = 0, trims = 0;      // so far
  cudaError_t last_error = cudaSuccess;
};
Runtime& runtime();

}  // namespace octavo::cuda_emulator
