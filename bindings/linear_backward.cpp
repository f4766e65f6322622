#include "octavo/linear_backward.hpp"

#include "module.hpp"
#include "octavo/registry.hpp"

namespace octavo::bindings {

namespace {

void expect_launcher(bool there, const KernelInfo& kernel, const char* op) {
  if (!there) throw py::value_error(std::string(op) + ": " + kernel.name + " is no such kernel of octavo");
}

}  // namespace

void bind_linear_backward(py::module_& m) {
  // Matrices are [rows, n] with n elements between rows unless a stride is given.
  m.def(
      "linear_epilogue_backward",
      [](KernelInfo& kernel, std::uintptr_t z, std::uintptr_t grad, std::int64_t grad_stride, int dtype,
         std::int64_t rows, std::int64_t n, const Epilogue& epilogue, std::uintptr_t grad_z, int grad_z_dtype,
         std::uintptr_t grad_extra, int grad_extra_dtype, std::uintptr_t grad_bias, std::uintptr_t grad_norm_weight,
         std::uintptr_t grad_norm_bias, std::uintptr_t stream) {
        expect_launcher(kernel.run.epilogue_backward != nullptr, kernel, "linear_epilogue_backward");
        expect_memory("grad", grad, rows * n);
        const EpilogueBackwardArgs args{matrix(z, rows, n, n, static_cast<DType>(dtype)),
                                        matrix(grad, rows, n, grad_stride, static_cast<DType>(dtype)),
                                        epilogue,
                                        matrix(grad_z, rows, n, n, static_cast<DType>(grad_z_dtype)),
                                        matrix(grad_extra, rows, n, n, static_cast<DType>(grad_extra_dtype)),
                                        reinterpret_cast<float*>(grad_bias),
                                        reinterpret_cast<float*>(grad_norm_weight),
                                        reinterpret_cast<float*>(grad_norm_bias),
                                        reinterpret_cast<void*>(stream)};
        ++kernel.calls;
        run_released([&] { return kernel.run.epilogue_backward(args); });
      },
      py::arg("kernel"), py::arg("z"), py::arg("grad"), py::arg("grad_stride"), py::arg("dtype"), py::arg("m"),
      py::arg("n"), py::arg("epilogue"), py::arg("grad_z"), py::arg("grad_z_dtype"), py::arg("grad_extra"),
      py::arg("grad_extra_dtype"), py::arg("grad_bias"), py::arg("grad_norm_weight"), py::arg("grad_norm_bias"),
      py::arg("stream"));

  m.def(
      "linear_grad_input",
      [](KernelInfo& kernel, std::uintptr_t grad, std::int64_t rows, std::int64_t grad_stride, int grad_dtype,
         const PackedWeight& weight, std::uintptr_t grad_x, int grad_x_dtype, std::uintptr_t stream) {
        expect_launcher(kernel.run.grad_input != nullptr, kernel, "linear_grad_input");
        expect_memory("grad", grad, rows * weight.n());
        const GradInputArgs args{matrix(grad, rows, weight.n(), grad_stride, static_cast<DType>(grad_dtype)), &weight,
                                 matrix(grad_x, rows, weight.k(), weight.k(), static_cast<DType>(grad_x_dtype)),
                                 reinterpret_cast<void*>(stream)};
        ++kernel.calls;
        run_released([&] { return kernel.run.grad_input(args); });
      },
      py::arg("kernel"), py::arg("grad"), py::arg("m"), py::arg("grad_stride"), py::arg("grad_dtype"),
      py::arg("weight"), py::arg("grad_x"), py::arg("grad_x_dtype"), py::arg("stream") = 0);

  m.def(
      "linear_grad_weight",
      [](KernelInfo& kernel, std::uintptr_t grad, std::int64_t grad_stride, int grad_dtype, std::uintptr_t x,
         std::int64_t x_stride, int x_dtype, std::int64_t rows, std::int64_t n, std::int64_t k,
         std::uintptr_t grad_weight, std::uintptr_t stream) {
        expect_launcher(kernel.run.grad_weight != nullptr, kernel, "linear_grad_weight");
        expect_memory("grad", grad, rows * n);
        const GradWeightArgs args{matrix(grad, rows, n, grad_stride, static_cast<DType>(grad_dtype)),
                                  matrix(x, rows, k, x_stride, static_cast<DType>(x_dtype)),
                                  matrix(grad_weight, n, k, k, DType::f32), reinterpret_cast<void*>(stream)};
        ++kernel.calls;
        run_released([&] { return kernel.run.grad_weight(args); });
      },
      py::arg("kernel"), py::arg("grad"), py::arg("grad_stride"), py::arg("grad_dtype"), py::arg("x"),
      py::arg("x_stride"), py::arg("x_dtype"), py::arg("m"), py::arg("n"), py::arg("k"), py::arg("grad_weight"),
      py::arg("stream") = 0);

  // Both in one call, by rows of the registry that work together (Kernel.works_with).
  m.def(
      "linear_gradients",
      [](KernelInfo& input, KernelInfo& weight_kernel, std::uintptr_t grad, std::int64_t rows, std::int64_t grad_stride,
         int grad_dtype, const PackedWeight& weight, std::uintptr_t grad_x, int grad_x_dtype, std::uintptr_t x,
         std::int64_t x_stride, int x_dtype, std::uintptr_t grad_weight, std::uintptr_t stream) {
        expect_launcher(work_together(input, weight_kernel), input, "linear_gradients");
        const std::int64_t n = weight.n(), k = weight.k();
        expect_memory("grad", grad, rows * n);
        const MatrixView grads = matrix(grad, rows, n, grad_stride, static_cast<DType>(grad_dtype));
        void* const on = reinterpret_cast<void*>(stream);
        const GradInputArgs of_x{grads, &weight, matrix(grad_x, rows, k, k, static_cast<DType>(grad_x_dtype)), on};
        const GradWeightArgs of_weight{grads, matrix(x, rows, k, x_stride, static_cast<DType>(x_dtype)),
                                       matrix(grad_weight, n, k, k, DType::f32), on};
        ++input.calls;
        ++weight_kernel.calls;
        run_released([&] { return input.run.gradients(of_x, of_weight); });
      },
      py::arg("input_kernel"), py::arg("weight_kernel"), py::arg("grad"), py::arg("m"), py::arg("grad_stride"),
      py::arg("grad_dtype"), py::arg("weight"), py::arg("grad_x"), py::arg("grad_x_dtype"), py::arg("x"),
      py::arg("x_stride"), py::arg("x_dtype"), py::arg("grad_weight"), py::arg("stream") = 0);
}

}  // namespace octavo::bindings
