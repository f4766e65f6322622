// What a .cu file finds in place of nvcc's language when g++ compiles it for tests: included before its first line.
//
// Kernels run on the CPU, block after block; the threads of a block are fibers that switch where threads wait for each
// other. Device memory is host memory, so the sanitizers see every access.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __shared__ static  // one block runs at a time
#define __launch_bounds__(...)
#define __grid_constant__

inline uint3 threadIdx, blockIdx;  // of the thread that runs
inline dim3 blockDim, gridDim;

namespace octavo::cuda_emulator {

// In the place of cuda/device/launch.cuh's: lets what was launched before run, if it did not yet.
void wait_for_previous_kernels();

// Stops the test program where the thread that runs has not called it. Barriers, warp calls, atomics and the end of a
// kernel do.
void expect_waited(const char* what);

void wait_for_block();

// The values that the lanes of `mask` hand in at the same call `kind`; those of other lanes are not to be used.
const std::array<std::uint64_t, 32>& exchange(unsigned mask, int kind, std::uint64_t value);

// Stops the test program with the block and thread that did wrong.
[[noreturn]] void fail(const char* what);

unsigned char* dynamic_shared();

enum Kind { kSync, kShuffle, kVote, kProduct };

inline unsigned lane() { return threadIdx.x % 32; }

template <class T>
T shuffle(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const auto& values = exchange(mask, kShuffle, bits);
  if ((mask >> source & 1) == 0) fail("a shuffle reads a lane outside its mask");
  std::memcpy(&value, &values[source], sizeof value);
  return value;
}

inline unsigned votes(unsigned mask, bool vote) {
  const auto& values = exchange(mask, kVote, vote);
  unsigned found = 0;
  for (unsigned i = 0; i < 32; ++i) found |= (mask >> i & 1) != 0 && values[i] != 0 ? 1u << i : 0;
  return found;
}

}  // namespace octavo::cuda_emulator

inline void __syncthreads() { octavo::cuda_emulator::wait_for_block(); }
inline void __syncwarp(unsigned mask = ~0u) { octavo::cuda_emulator::exchange(mask, octavo::cuda_emulator::kSync, 0); }
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return octavo::cuda_emulator::shuffle(mask, value, octavo::cuda_emulator::lane() ^ static_cast<unsigned>(lanes));
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return octavo::cuda_emulator::shuffle(mask, value, static_cast<unsigned>(source) % 32);
}
inline unsigned __ballot_sync(unsigned mask, bool vote) { return octavo::cuda_emulator::votes(mask, vote); }
inline bool __any_sync(unsigned mask, bool vote) { return octavo::cuda_emulator::votes(mask, vote) != 0; }

// Threads of a block switch nowhere else, so every access is atomic.
template <class T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  octavo::cuda_emulator::expect_waited("comes to an atomic");
  const T before = *at;
  *at = before + value;
  return before;
}
template <class T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  octavo::cuda_emulator::expect_waited("comes to an atomic");
  const T before = *at;
  if (value > before) *at = value;
  return before;
}
template <class T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  octavo::cuda_emulator::expect_waited("comes to an atomic");
  const T before = *at;
  if (value < before) *at = value;
  return before;
}

template <class T>
T __ldg(const T* at) {
  return *at;
}
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
