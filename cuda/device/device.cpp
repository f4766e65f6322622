#include "device/device.hpp"

namespace octavo::cuda {

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
  return bytes == 0 ? Status{} : checked(cudaMallocAsync(&data_, bytes, stream_), "scratch memory");
}

StreamBuffer::~StreamBuffer() {
  if (data_ != nullptr) (void)cudaFreeAsync(data_, stream_);
}

}  // namespace octavo::cuda
