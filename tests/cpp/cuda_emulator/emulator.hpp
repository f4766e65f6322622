// Runs kernels on the CPU (prelude.hpp), and what tests may ask of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "prelude.hpp"

namespace octavo::cuda_emulator {

// Whether a device would take a launch of this size.
bool is_launchable(dim3 grid, dim3 block, std::size_t shared_bytes);

// `thread` runs once for each thread of the grid, now; `before` when all threads of the first block wait for previous
// kernels.
void run(
    dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& thread,
    const std::function<void()>& before = [] {});

// Work on the one stream (stream.cpp). It runs at once, unless the host is in a call that octavo holds a device for
// (DeviceGuard) while launches start early: then all of it runs when the call ends, or when the host waits, the last
// launch first: what came before it runs once its first block waits for that. So late may a device be, and a kernel
// that reads or writes before it waits gives another result. `early`: as launched; other work waits itself. False for a
// launch that a device would refuse.
bool launch(dim3 grid, dim3 block, std::size_t shared_bytes, bool early, std::function<void()> thread);
void in_stream(std::function<void()> work);
void finish_stream();

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
  bool in_call = false;                // of octavo's, that launches early
  int refused_from = 0, refusals = 0;  // the allocation from which on so many fail for want of memory
  int allocations = 0, trims = 0;      // so far
  cudaError_t last_error = cudaSuccess;
};
Runtime& runtime();

}  // namespace octavo::cuda_emulator
