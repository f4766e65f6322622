// The one way a kernel is started. Tests compile the same files with g++ and run them on the CPU
// (tests/cpp/cuda_emulator), which replaces what is here.
#pragma once

#include "device/device.hpp"

#ifdef OCTAVO_CUDA_EMULATOR
#include "emulator.hpp"
#endif

namespace octavo::cuda {

constexpr std::size_t kParameterBytes = 32764;  // of a kernel, from sm_70 on

// The first statement of every kernel, for every thread: what comes before on the stream is done, and its writes are
// seen. Memory is for later, as the launch may have started early (start_launches_early); and only a
// kernel that waits is done later than all before it, which is what the next one's wait relies on.
__device__ inline void wait_for_previous_kernels() {
#ifdef OCTAVO_CUDA_EMULATOR
  cuda_emulator::wait_for_previous_kernels();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

template <class... Parameters, class... Arguments>
Status launch(const char* what, void (*kernel)(Parameters...), dim3 grid, unsigned threads, std::size_t shared_bytes,
              cudaStream_t stream, const Arguments&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= kParameterBytes);
#ifdef OCTAVO_CUDA_EMULATOR
  (void)stream;
  if (!cuda_emulator::launch(grid, dim3(threads), shared_bytes, launches_start_early(),
                             [kernel, arguments...] { kernel(arguments...); }))
    return {Code::internal, std::string(what) + ": invalid configuration"};
  return {};
#else
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  config.numAttrs = launches_start_early() ? 1 : 0;
  return checked(cudaLaunchKernelEx(&config, kernel, arguments...), what);
#endif
}

// The block's shared memory whose size the launch gave, 16-byte aligned.
template <class T>
__device__ T* dynamic_shared() {
#ifdef OCTAVO_CUDA_EMULATOR
  return reinterpret_cast<T*>(cuda_emulator::dynamic_shared());
#else
  extern __shared__ uint4 octavo_dynamic_shared[];
  return reinterpret_cast<T*>(octavo_dynamic_shared);
#endif
}

}  // namespace octavo::cuda
