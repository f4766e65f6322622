#include "device/device.hpp"

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <map>
#include <mutex>

namespace octavo::cuda {
namespace {

// A pool of octavo's own on the current device. The default one returns all memory to the system whenever the stream is
// synchronized; this one keeps up to a GiB.
Status scratch_pool(cudaMemPool_t& pool) {
  static auto* mutex = new std::mutex;  // never destroyed: kernels may run during interpreter shutdown
  static auto* pools = new std::map<int, cudaMemPool_t>;
  int device = 0;
  if (Status s = checked(cudaGetDevice(&device), "scratch memory"); !s.ok()) return s;
  const std::scoped_lock lock(*mutex);
  if (const auto found = pools->find(device); found != pools->end()) {
    pool = found->second;
    return {};
  }
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location = {cudaMemLocationTypeDevice, device};
  if (Status s = checked(cudaMemPoolCreate(&pool, &properties), "scratch memory"); !s.ok()) return s;
  std::uint64_t kept = std::uint64_t{1} << 30;
  if (Status s = checked(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept), "scratch memory");
      !s.ok())
    return s;
  (*pools)[device] = pool;
  return {};
}

std::string mebibytes(std::size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  return text;
}

Status out_of_memory(std::size_t bytes) {
  int device = 0;
  std::size_t unused = 0, total = 0;
  std::string found;
  if (cudaGetDevice(&device) == cudaSuccess && cudaMemGetInfo(&unused, &total) == cudaSuccess)
    found = "; device " + std::to_string(device) + " has " + mebibytes(unused) + " of " + mebibytes(total) + " free";
  (void)cudaGetLastError();
  return {Code::out_of_memory, "out of memory: the call needs " + mebibytes(bytes) + " of scratch memory" + found +
                                   "; use smaller batches, or free what this process keeps elsewhere"};
}

// What earlier calls gave back lies in the pool in pieces that may all be too small: once it is given back to the
// device, there is one more try. A capture allocates when its graph is launched, and may not wait.
Status allocate_from_pool(std::size_t bytes, cudaStream_t stream, void*& data) {
  cudaMemPool_t pool{};
  if (Status s = scratch_pool(pool); !s.ok()) return s;
  cudaError_t error = cudaMallocFromPoolAsync(&data, bytes, pool, stream);
  if (error != cudaErrorMemoryAllocation) return checked(error, "scratch memory");
  (void)cudaGetLastError();
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusActive;
  if (cudaStreamIsCapturing(stream, &capture) == cudaSuccess && capture == cudaStreamCaptureStatusNone &&
      cudaStreamSynchronize(stream) == cudaSuccess && cudaMemPoolTrimTo(pool, 0) == cudaSuccess)
    error = cudaMallocFromPoolAsync(&data, bytes, pool, stream);
  if (error == cudaSuccess) return {};
  data = nullptr;
  return error == cudaErrorMemoryAllocation ? out_of_memory(bytes) : checked(error, "scratch memory");
}

ScratchSource g_source;
std::atomic<bool> g_early = false;

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

std::string problem_of(const DeviceInfo& found, int count) {
  if (found.usable) return {};
  if (found.driver == 0) return "there is no NVIDIA driver";
  if (found.driver / 1000 < found.runtime / 1000)
    return "the NVIDIA driver is for CUDA " + version(found.driver) + ", octavo was built for CUDA " +
           version(found.runtime) + "; update the driver";
  return count == 0 ? "the NVIDIA driver shows no device (CUDA_VISIBLE_DEVICES?)" : "the NVIDIA driver does not answer";
}

}  // namespace

const DeviceInfo& device_info() {
  static const DeviceInfo info = [] {
    DeviceInfo found;
    int count = 0, device = 0;
    cudaDeviceProp properties{};
    (void)cudaDriverGetVersion(&found.driver);
    (void)cudaRuntimeGetVersion(&found.runtime);
    if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0 && cudaGetDevice(&device) == cudaSuccess &&
        cudaGetDeviceProperties(&properties, device) == cudaSuccess) {
      found.usable = true;
      found.name = properties.name;
      found.major = properties.major;
      found.minor = properties.minor;
      found.multiprocessors = properties.multiProcessorCount;
    }
    found.problem = problem_of(found, count);
    (void)cudaGetLastError();  // a machine without a device is no error
    return found;
  }();
  return info;
}

Status checked(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();
  return {Code::internal, std::string(what) + ": " + cudaGetErrorString(error)};
}

Status expect_capability(const char* what, int major, int minor) {
  int device = 0, found_major = 0, found_minor = 0;
  if (Status s = checked(cudaGetDevice(&device), what); !s.ok()) return s;
  if (Status s = checked(cudaDeviceGetAttribute(&found_major, cudaDevAttrComputeCapabilityMajor, device), what);
      !s.ok())
    return s;
  if (Status s = checked(cudaDeviceGetAttribute(&found_minor, cudaDevAttrComputeCapabilityMinor, device), what);
      !s.ok())
    return s;
  if (found_major == major && found_minor == minor) return {};
  const auto dotted = [](int a, int b) { return std::to_string(a) + "." + std::to_string(b); };
  return Status::unsupported(std::string(what) + ": this kernel is for devices of compute capability " +
                             dotted(major, minor) + ", the tensors are on device " + std::to_string(device) + " with " +
                             dotted(found_major, found_minor) + "; move them to one, or run another kernel");
}

bool start_launches_early(bool allowed) { return g_early.exchange(allowed); }

bool launches_start_early() {
  int device = 0, major = 0;
  return g_early && cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 9;
}

Status expect_aligned(const char* what, std::initializer_list<Address> addresses) {
  for (const Address& a : addresses)
    if (reinterpret_cast<std::uintptr_t>(a.data) % a.element != 0)
      return Status::invalid(std::string(what) + ": the address of " + a.name + " is no multiple of its " +
                             std::to_string(a.element) + "-byte elements, where a device cannot read; use .clone()");
  return {};
}

DeviceGuard::DeviceGuard(std::initializer_list<const void*> pointers) {
  int current = 0;
  if (cudaGetDevice(&current) != cudaSuccess) return;
  for (const void* pointer : pointers) {
    cudaPointerAttributes attributes{};
    if (pointer == nullptr) continue;
    if (cudaPointerGetAttributes(&attributes, pointer) != cudaSuccess) {
      (void)cudaGetLastError();
      continue;
    }
    if (attributes.device < 0) continue;
    if (attributes.device != current && cudaSetDevice(attributes.device) == cudaSuccess) before_ = current;
    return;
  }
}

DeviceGuard::~DeviceGuard() {
  if (before_ >= 0) (void)cudaSetDevice(before_);
}

void use_scratch_source(const ScratchSource& source) { g_source = source; }

Status StreamBuffer::allocate(std::size_t bytes) {
  if (bytes == 0) return {};
  if (g_source.allocate != nullptr) {
    int device = 0;
    if (Status s = checked(cudaGetDevice(&device), "scratch memory"); !s.ok()) return s;
    const Status status = g_source.allocate(bytes, device, stream_, data_, owner_);
    if (status.code() == Code::out_of_memory)
      return {Code::out_of_memory,
              "out of memory: the call needs " + mebibytes(bytes) + " of scratch memory; " + status.message()};
    if (!status.ok() || data_ != nullptr) return status;
  }
  return allocate_from_pool(bytes, stream_, data_);
}

StreamBuffer::~StreamBuffer() {
  if (owner_ != nullptr)
    g_source.release(owner_);
  else if (data_ != nullptr)
    (void)cudaFreeAsync(data_, stream_);
}

}  // namespace octavo::cuda
