// The functions of the CUDA runtime that octavo calls, for one device whose memory is the host's, with one stream
// (stream.cpp).
//
// While launches start early the memory belongs to device 1 and the host begins on device 0, so that DeviceGuard tells
// where a call of octavo's begins and ends.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>

#include "device/device.hpp"
#include "emulator.hpp"

namespace octavo::cuda_emulator {

Runtime& runtime() {
  static Runtime state;
  return state;
}

}  // namespace octavo::cuda_emulator

namespace {

using octavo::cuda_emulator::in_stream;
using octavo::cuda_emulator::runtime;

cudaError_t failed(cudaError_t error) { return runtime().last_error = error; }

void copy(void* to, const void* from, std::size_t bytes) {
  if (bytes != 0) std::memmove(to, from, bytes);
}

}  // namespace

extern "C" {

cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = runtime().in_call, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  runtime().in_call = device == 1;
  if (device == 0) octavo::cuda_emulator::finish_stream();
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = runtime().last_error;
  runtime().last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t) { return "emulated"; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "emulator");
  properties->major = 9;
  properties->multiProcessorCount = 2;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? runtime().capability_major : 0;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* unused, std::size_t* total) {
  *unused = std::size_t{3} << 20;
  *total = std::size_t{80} << 30;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void*) {
  *attributes = {};
  attributes->device = octavo::cuda::launches_start_early();
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = runtime().capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return octavo::cuda_emulator::finish_stream(), cudaSuccess; }

cudaError_t cudaMallocAsync(void** memory, std::size_t bytes, cudaStream_t) {
  auto& state = runtime();
  if (state.allocations++ >= state.refused_from && state.refusals-- > 0) return failed(cudaErrorMemoryAllocation);
  *memory = std::malloc(bytes);
  return std::memset(*memory, 0xff, bytes), cudaSuccess;  // NaN
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) { return *pool = nullptr, cudaSuccess; }
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, std::size_t) { return ++runtime().trims, cudaSuccess; }
cudaError_t cudaMallocFromPoolAsync(void** memory, std::size_t bytes, cudaMemPool_t, cudaStream_t stream) {
  return cudaMallocAsync(memory, bytes, stream);
}
cudaError_t cudaFreeAsync(void* memory, cudaStream_t) {
  return in_stream([=] { std::free(memory); }), cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  return in_stream([=] { std::memset(memory, value, bytes); }), cudaSuccess;
}
cudaError_t cudaMemset2DAsync(void* memory, std::size_t pitch, int value, std::size_t width, std::size_t height,
                              cudaStream_t) {
  in_stream([=] {
    for (std::size_t row = 0; row < height; ++row) std::memset(static_cast<char*>(memory) + row * pitch, value, width);
  });
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                              std::size_t width, std::size_t height, cudaMemcpyKind, cudaStream_t) {
  in_stream([=] {
    for (std::size_t row = 0; row < height; ++row)
      std::memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
  });
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
  return in_stream([=] { copy(to, from, bytes); }), cudaSuccess;
}

}  // extern "C"
