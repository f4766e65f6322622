// The CUDA device, asked once and never before it is needed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "octavo/types.hpp"

namespace octavo::cuda {

struct DeviceInfo {
  bool usable = false;  // a device, and a driver recent enough for the runtime that is linked in
  std::string name;
  int major = 0, minor = 0;
  int multiprocessors = 0;
  int driver = 0, runtime = 0;  // CUDA versions as 1000 * major + 10 * minor
};

// The current device's. Not usable without a driver, without a device, or with a driver older than the runtime.
const DeviceInfo& device_info();

// ok, or what the runtime says, with `what` in front.
Status checked(cudaError_t error, const char* what);

// Makes the device that owns `pointer` current while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(const void* pointer);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = -1;
};

// Memory of one call, ordered on its stream: what follows on the stream may use it until this object dies. Safe under
// graph capture.
class StreamBuffer {
 public:
  explicit StreamBuffer(cudaStream_t stream) : stream_(stream) {}
  ~StreamBuffer();
  StreamBuffer(const StreamBuffer&) = delete;
  StreamBuffer& operator=(const StreamBuffer&) = delete;

  Status allocate(std::size_t bytes);
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  cudaStream_t stream_;
  void* data_ = nullptr;
};

}  // namespace octavo::cuda
