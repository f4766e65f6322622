#include "device/device.hpp"

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
    (void)cudaGetLastError();  // a machine without a device is no error
    return found;
  }();
  return info;
}

Status checked(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  return {Code::internal, std::string(what) + ": " + cudaGetErrorString(error)};
}

DeviceGuard::DeviceGuard(const void* pointer) {
  cudaPointerAttributes attributes{};
  int current = 0;
  if (cudaGetDevice(&current) != cudaSuccess) return;
  if (cudaPointerGetAttributes(&attributes, pointer) != cudaSuccess) {
    (void)cudaGetLastError();  // an empty matrix has no address: the current device serves, nothing failed
    return;
  }
  if (attributes.device < 0) return;
  if (attributes.device != current && cudaSetDevice(attributes.device) == cudaSuccess) before_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (before_ >= 0) (void)cudaSetDevice(before_);
}

Status StreamBuffer::allocate(std::size_t bytes) {
  if (bytes == 0) return {};
  cudaMemPool_t pool{};
  if (Status s = scratch_pool(pool); !s.ok()) return s;
  return checked(cudaMallocFromPoolAsync(&data_, bytes, pool, stream_), "scratch memory");
}

StreamBuffer::~StreamBuffer() {
  if (data_ != nullptr) (void)cudaFreeAsync(data_, stream_);
}

}  // namespace octavo::cuda
