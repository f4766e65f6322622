#include "module.hpp"

#ifdef OCTAVO_WITH_CUDA
#include "device/device.hpp"
#endif

namespace octavo::bindings {

// None where octavo was built without CUDA or there is no device its kernels can use; never raises.
py::object cuda_info() {
#ifdef OCTAVO_WITH_CUDA
  const cuda::DeviceInfo& device = cuda::device_info();
  if (!device.usable) return py::none();
  py::dict d;
  d["name"] = device.name;
  d["capability"] = std::to_string(device.major) + "." + std::to_string(device.minor);
  d["driver"] = device.driver;
  d["runtime"] = device.runtime;
  return d;
#else
  return py::none();
#endif
}

void bind_cuda(py::module_& m) {
  m.def("cuda_info", &cuda_info);
#ifdef OCTAVO_WITH_CUDA
  m.attr("built_with_cuda") = true;
#else
  m.attr("built_with_cuda") = false;
#endif
}

}  // namespace octavo::bindings
