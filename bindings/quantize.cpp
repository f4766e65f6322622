#include "octavo/quantize.hpp"

#include <pybind11/native_enum.h>

#include "module.hpp"
#include "octavo/float8.hpp"
#include "octavo/registry.hpp"

namespace octavo::bindings {

void bind_quantize(py::module_& m) {
  py::native_enum<Scaling>(m, "Scaling", "enum.IntEnum")
      .value("tensor", Scaling::tensor)
      .value("row", Scaling::row)
      .value("block_1x128", Scaling::block_1x128)
      .value("block_128x128", Scaling::block_128x128)
      .value("mx", Scaling::mx)
      .finalize();
  // scale: the address of FP32 scales, of E8M0 bytes for mx.
  m.def("quantize", [](KernelInfo& kernel, std::uintptr_t x, std::int64_t rows, std::int64_t cols, std::int64_t stride,
                       int dtype, int format, int scaling, bool pow2_scale, std::uintptr_t codes, std::uintptr_t scale,
                       std::uintptr_t stream) {
    if (kernel.run.quantize == nullptr) throw py::value_error("quantize: " + kernel.name + " is no quantizer");
    expect_memory("x", x, rows * cols);
    expect_memory("out.data", codes, rows * cols);
    const QuantizeArgs args{matrix(x, rows, cols, stride, static_cast<DType>(dtype)),
                            static_cast<DType>(format),
                            static_cast<Scaling>(scaling),
                            pow2_scale,
                            reinterpret_cast<void*>(codes),
                            reinterpret_cast<float*>(scale),
                            reinterpret_cast<std::uint8_t*>(scale),
                            reinterpret_cast<void*>(stream)};
    ++kernel.calls;
    run_released([&] { return kernel.run.quantize(args); });
  });
  m.def("dequantize", [](std::uintptr_t codes, int format, int scaling, std::uintptr_t scale, std::uintptr_t out,
                         std::int64_t rows, std::int64_t cols, std::int64_t stride, int dtype) {
    expect_memory("q.data", codes, rows * cols);
    expect_memory("out", out, rows * cols);
    const DequantizeArgs args{reinterpret_cast<const void*>(codes),
                              static_cast<DType>(format),
                              static_cast<Scaling>(scaling),
                              reinterpret_cast<const float*>(scale),
                              matrix(out, rows, cols, stride, static_cast<DType>(dtype)),
                              reinterpret_cast<const std::uint8_t*>(scale)};
    run_released([&] { return dequantize(args); });
  });
}

}  // namespace octavo::bindings
