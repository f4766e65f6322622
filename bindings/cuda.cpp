#include <utility>

#include "module.hpp"

#ifdef OCTAVO_WITH_CUDA
#include "device/device.hpp"
#include "kernels.hpp"
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

#ifdef OCTAVO_WITH_CUDA
// The kernel that ends a layer, alone: y [m, n] of z [m, n] FP32, contiguous. For benchmarks; layers call it inside.
void finish_linear(std::uintptr_t z, std::int64_t rows, std::int64_t n, const Epilogue& epilogue, std::uintptr_t y,
                   DType y_dtype, std::uintptr_t y_scale, std::uintptr_t stream) {
  run_released([&] {
    return cuda::finish_linear(matrix(z, rows, n, n, DType::f32), epilogue, matrix(y, rows, n, n, y_dtype),
                               reinterpret_cast<cudaStream_t>(stream), reinterpret_cast<float*>(y_scale));
  });
}
#endif

// Why octavo's CUDA kernels serve nothing here; empty where they do.
std::string cuda_problem() {
#ifdef OCTAVO_WITH_CUDA
  const cuda::DeviceInfo& device = cuda::device_info();
  if (device.usable && device.major < 8)
    return "octavo's kernels need compute capability 8.0 (Ampere), " + device.name + " has " +
           std::to_string(device.major) + "." + std::to_string(device.minor);
  return device.problem;
#else
  return "octavo was built without CUDA; build it with OCTAVO_CUDA=ON";
#endif
}

// Kept, without effect, where octavo was built without CUDA; see device.hpp.
bool start_launches_early(bool allowed) {
#ifdef OCTAVO_WITH_CUDA
  return cuda::start_launches_early(allowed);
#else
  static bool kept = false;
  return std::exchange(kept, allowed);
#endif
}

void bind_cuda(py::module_& m) {
  m.def("cuda_info", &cuda_info);
  m.def("cuda_problem", &cuda_problem);
  m.def("start_launches_early", &start_launches_early, py::arg("allowed"));
#ifdef OCTAVO_WITH_CUDA
  m.attr("built_with_cuda") = true;
  m.def("finish_linear", &finish_linear, py::arg("z"), py::arg("m"), py::arg("n"), py::arg("epilogue"), py::arg("y"),
        py::arg("y_dtype"), py::arg("y_scale"), py::arg("stream"));
#else
  m.attr("built_with_cuda") = false;
#endif
}

}  // namespace octavo::bindings
