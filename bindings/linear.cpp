#include "octavo/linear.hpp"

#include <pybind11/native_enum.h>

#include "module.hpp"
#include "octavo/registry.hpp"

namespace octavo::bindings {

void bind_linear(py::module_& m) {
  py::native_enum<NormKind>(m, "NormKind", "enum.IntEnum")
      .value("none", NormKind::none)
      .value("layer", NormKind::layer)
      .value("rms", NormKind::rms)
      .value("block", NormKind::block)
      .value("swish_rms", NormKind::swish_rms)
      .finalize();
  py::native_enum<Activation>(m, "Activation", "enum.IntEnum")
      .value("none", Activation::none)
      .value("relu", Activation::relu)
      .value("silu", Activation::silu)
      .value("gelu", Activation::gelu)
      .value("hardswish", Activation::hardswish)
      .value("sigmoid", Activation::sigmoid)
      .finalize();

  // The codes and scales stay the caller's and must outlive it.
  py::class_<PackedWeight>(m, "PackedWeight")
      .def(py::init(
               [](std::uintptr_t codes, std::uintptr_t scale, std::int64_t n, std::int64_t k, int dtype, int scaling) {
                 expect_memory("w", codes, n * k);
                 return std::make_unique<PackedWeight>(reinterpret_cast<const void*>(codes),
                                                       reinterpret_cast<const float*>(scale), n, k,
                                                       static_cast<DType>(dtype), static_cast<Scaling>(scaling));
               }),
           py::arg("codes"), py::arg("scale"), py::arg("n"), py::arg("k"), py::arg("dtype"),
           py::arg("scaling") = static_cast<int>(Scaling::row))
      .def_property_readonly("n", &PackedWeight::n)
      .def_property_readonly("layout_bytes", &PackedWeight::layout_bytes);

  // Plain values: the vectors stay the caller's and must outlive it.
  py::class_<Epilogue>(m, "Epilogue")
      .def(py::init([](std::uintptr_t bias, int norm, std::uintptr_t norm_weight, std::uintptr_t norm_bias, float eps,
                       std::int64_t norm_block, int activation) {
             Epilogue e;
             e.bias = reinterpret_cast<const float*>(bias);
             e.norm = static_cast<NormKind>(norm);
             e.norm_weight = reinterpret_cast<const float*>(norm_weight);
             e.norm_bias = reinterpret_cast<const float*>(norm_bias);
             e.eps = eps;
             e.norm_block = norm_block;
             e.activation = static_cast<Activation>(activation);
             return e;
           }),
           py::arg("bias"), py::arg("norm"), py::arg("norm_weight"), py::arg("norm_bias"), py::arg("eps"),
           py::arg("norm_block"), py::arg("activation"));

  m.def(
      "linear",
      [](KernelInfo& kernel, std::uintptr_t x, std::int64_t rows, std::int64_t x_stride, int x_dtype,
         const PackedWeight& weight, std::uintptr_t y, std::int64_t y_stride, int y_dtype, const Epilogue& epilogue,
         std::uintptr_t residual, std::int64_t residual_stride, int residual_dtype, bool residual_before_norm,
         std::uintptr_t stream, std::uintptr_t x_scale, std::uintptr_t y_scale, std::uintptr_t saved,
         std::uintptr_t residual_rows, std::int64_t residual_count) {
        if (kernel.run.linear == nullptr) throw py::value_error("linear: " + kernel.name + " is no linear kernel");
        expect_memory("x", x, rows * weight.k());
        expect_memory("out", y, rows * weight.n());
        LinearArgs args{matrix(x, rows, weight.k(), x_stride, static_cast<DType>(x_dtype)),
                        &weight,
                        epilogue,
                        matrix(y, rows, weight.n(), y_stride, static_cast<DType>(y_dtype)),
                        reinterpret_cast<void*>(stream),
                        reinterpret_cast<const float*>(x_scale),
                        reinterpret_cast<float*>(y_scale)};
        args.epilogue.residual = matrix(residual, residual_rows == 0 ? rows : residual_count, weight.n(),
                                        residual_stride, static_cast<DType>(residual_dtype));
        args.epilogue.residual_before_norm = residual_before_norm;
        args.epilogue.residual_rows = reinterpret_cast<const std::int64_t*>(residual_rows);
        args.epilogue.saved = matrix(saved, rows, weight.n(), weight.n(), static_cast<DType>(y_dtype));
        ++kernel.calls;
        run_released([&] { return kernel.run.linear(args); });
      },
      py::arg("kernel"), py::arg("x"), py::arg("m"), py::arg("x_stride"), py::arg("x_dtype"), py::arg("weight"),
      py::arg("y"), py::arg("y_stride"), py::arg("y_dtype"), py::arg("epilogue"), py::arg("residual"),
      py::arg("residual_stride"), py::arg("residual_dtype"), py::arg("residual_before_norm"), py::arg("stream") = 0,
      py::arg("x_scale") = 0, py::arg("y_scale") = 0, py::arg("saved") = 0, py::arg("residual_rows") = 0,
      py::arg("residual_count") = 0);
}

}  // namespace octavo::bindings
