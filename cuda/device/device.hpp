// The CUDA device, asked once and never before it is needed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <initializer_list>
#include <string>

#include "octavo/types.hpp"

namespace octavo::cuda {

struct DeviceInfo {
  bool usable = false;  // a device, and a driver recent enough for the runtime that is linked in
  std::string name;
  int major = 0, minor = 0;
  int multiprocessors = 0;
  int driver = 0, runtime = 0;  // CUDA versions as 1000 * major + 10 * minor
  std::string problem;          // why it is not usable, and what to do; empty where it is
};

// The current device's. Not usable without a driver, without a device, or with a driver older than the runtime.
const DeviceInfo& device_info();

// ok, or what the runtime says, with `what` in front. The runtime forgets the error: the next launch is not blamed.
Status checked(cudaError_t error, const char* what);

// unsupported unless the current device has exactly this compute capability, as code for sm_90a needs.
Status expect_capability(const char* what, int major, int minor);

// Whether kernels may start while what comes before them on their stream still runs (programmatic dependent launch), in
// all threads; false at first. Each waits at its start (device/launch.cuh), so results are the same. Launches that a
// graph records keep what was set then. Without effect before Hopper. Returns what was set before.
bool start_launches_early(bool allowed);

// Whether the next launch does: it was allowed, and the current device is of Hopper or later.
bool launches_start_early();

// What a kernel reads or writes at addresses that are multiples of an element's size.
struct Address {
  const char* name;
  const void* data;
  std::size_t element;
  Address(const char* name_, const void* data_, std::size_t element_) : name(name_), data(data_), element(element_) {}
  Address(const char* name_, const MatrixView& view) : Address(name_, view.data, size_of(view.dtype)) {}
};

// invalid_argument that names the first that is none: a device would stop at it, and the process with it.
Status expect_aligned(const char* what, std::initializer_list<Address> addresses);

// Makes the device that owns the first of `pointers` that a device owns current while it lives: an empty matrix has no
// address. Of a call without any, the current device's.
class DeviceGuard {
 public:
  explicit DeviceGuard(std::initializer_list<const void*> pointers);
  explicit DeviceGuard(const void* pointer) : DeviceGuard({pointer}) {}
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = -1;
};

// Where scratch memory comes from, of a program whose device memory one allocator owns: `bytes` > 0 on the current
// device for work on `stream`, or null where it has none for that stream; `owner` is handed back to `release`, which
// may give the memory to what follows on the stream. Without a source, and where it gives null, a pool of octavo's own
// serves.
struct ScratchSource {
  Status (*allocate)(std::size_t bytes, int device, cudaStream_t stream, void*& memory, void*& owner) = nullptr;
  void (*release)(void* owner) = nullptr;
};
void use_scratch_source(const ScratchSource& source);  // before the first call; {}: the pool

// Memory of one call, ordered on its stream: what follows on the stream may use it until this object dies. Safe under
// graph capture.
class StreamBuffer {
 public:
  explicit StreamBuffer(cudaStream_t stream) : stream_(stream) {}
  ~StreamBuffer();
  StreamBuffer(const StreamBuffer&) = delete;
  StreamBuffer& operator=(const StreamBuffer&) = delete;

  Status allocate(std::size_t bytes);  // once; ok, out_of_memory or internal
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  cudaStream_t stream_;
  void *data_ = nullptr, *owner_ = nullptr;  // owner: of memory that the source gave
};

}  // namespace octavo::cuda
