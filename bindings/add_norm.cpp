#include "octavo/add_norm.hpp"

#include <optional>
#include <vector>

#include "batch_view.hpp"
#include "module.hpp"
#include "octavo/registry.hpp"

namespace octavo::bindings {

void bind_add_norm(py::module_& m) {
  m.def("add_norm", [](KernelInfo& kernel, std::int64_t batch, const std::vector<Batch>& parts,
                       const std::optional<Batch>& residual, const Epilogue& norm, std::uintptr_t out,
                       std::uintptr_t out_transposed, std::uintptr_t saved) {
    if (kernel.run.add_norm == nullptr) throw py::value_error("add_norm: " + kernel.name + " is no kernel of this op");
    std::vector<BatchView> views;
    views.reserve(parts.size());
    std::int64_t elements = 0;
    for (const Batch& part : parts) {
      views.push_back(view_of("parts", part, batch));
      elements += batch * views.back().rows * views.back().cols;
    }
    expect_memory("out", out, elements);
    AddNormArgs args;
    args.batch = batch;
    args.parts = views.data();
    args.part_count = static_cast<int>(views.size());
    if (residual.has_value()) args.residual = view_of("residual", *residual, batch);
    args.norm = norm.norm;
    args.weight = norm.norm_weight;
    args.bias = norm.norm_bias;
    args.eps = norm.eps;
    args.norm_block = norm.norm_block;
    args.out = reinterpret_cast<void*>(out);
    args.out_transposed = reinterpret_cast<void*>(out_transposed);
    args.saved = reinterpret_cast<void*>(saved);
    ++kernel.calls;
    run_released([&] { return kernel.run.add_norm(args); });
  });
  m.def("add_norm_backward", [](KernelInfo& kernel, std::int64_t batch, const std::optional<Batch>& grad,
                                const std::optional<Batch>& grad_transposed, std::uintptr_t z, const Epilogue& norm,
                                std::uintptr_t grad_z, std::uintptr_t grad_weight, std::uintptr_t grad_bias) {
    if (kernel.run.add_norm_backward == nullptr)
      throw py::value_error("add_norm_backward: " + kernel.name + " is no kernel of this op");
    AddNormBackwardArgs args;
    args.batch = batch;
    if (grad.has_value()) args.grad = view_of("grad", *grad, batch);
    if (grad_transposed.has_value()) args.grad_transposed = view_of("grad", *grad_transposed, batch);
    args.z = reinterpret_cast<const void*>(z);
    args.norm = norm.norm;
    args.weight = norm.norm_weight;
    args.eps = norm.eps;
    args.norm_block = norm.norm_block;
    args.grad_z = reinterpret_cast<void*>(grad_z);
    args.grad_weight = reinterpret_cast<float*>(grad_weight);
    args.grad_bias = reinterpret_cast<float*>(grad_bias);
    ++kernel.calls;
    run_released([&] { return kernel.run.add_norm_backward(args); });
  });
}

}  // namespace octavo::bindings
