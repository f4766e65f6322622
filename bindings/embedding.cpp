#include "octavo/embedding.hpp"

#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "module.hpp"
#include "octavo/registry.hpp"
#include "table_set.hpp"

namespace octavo::bindings {
namespace {

BagIndices indices_of(const TableSet& tables, std::int64_t batch, std::uintptr_t values, std::int64_t num_values,
                      std::uintptr_t offsets, std::uintptr_t weights) {
  expect_memory("values", values, num_values);
  expect_memory("offsets", offsets, batch * tables.size() + 1);
  return {batch,
          tables.size(),
          reinterpret_cast<const std::int64_t*>(values),
          num_values,
          reinterpret_cast<const std::int64_t*>(offsets),
          reinterpret_cast<const float*>(weights)};
}

// Returns the number of rows skipped for being out of bounds.
std::int64_t bag_forward(KernelInfo& kernel, const TableSet& tables, std::int64_t batch, std::uintptr_t values,
                         std::int64_t num_values, std::uintptr_t offsets, std::uintptr_t weights, int bounds,
                         std::uintptr_t out, std::int64_t out_stride, int out_dtype, std::uintptr_t stream) {
  if (kernel.run.bag_forward == nullptr) throw py::value_error("bag_forward: " + kernel.name + " is no bag forward");
  expect_memory("out", out, batch * tables.dims());
  std::int64_t skipped = 0;
  const BagForwardArgs args{tables.views(),
                            indices_of(tables, batch, values, num_values, offsets, weights),
                            static_cast<Bounds>(bounds),
                            matrix(out, batch, tables.dims(), out_stride, static_cast<DType>(out_dtype)),
                            &skipped,
                            reinterpret_cast<void*>(stream)};
  ++kernel.calls;
  run_released([&] { return kernel.run.bag_forward(args); });
  return skipped;
}

// Returns the number of lookups out of bounds. `outs`: address, rows, row stride of each table's output.
std::int64_t row_lookup(KernelInfo& kernel, const TableSet& tables, std::int64_t batch, std::uintptr_t values,
                        std::int64_t num_values, std::uintptr_t offsets, int bounds,
                        const std::vector<std::tuple<std::uintptr_t, std::int64_t, std::int64_t>>& outs, int out_dtype,
                        std::uintptr_t stream) {
  if (kernel.run.row_lookup == nullptr) throw py::value_error("row_lookup: " + kernel.name + " is no row lookup");
  if (static_cast<std::int64_t>(outs.size()) != tables.size())
    throw py::value_error("outs: expected one per table (" + std::to_string(tables.size()) + ")");
  std::vector<MatrixView> views;
  for (const auto& [data, rows, stride] : outs)
    views.push_back(matrix(data, rows, tables.views()[views.size()].dim, stride, static_cast<DType>(out_dtype)));
  std::int64_t outside = 0;
  const RowLookupArgs args{tables.views(),
                           indices_of(tables, batch, values, num_values, offsets, 0),
                           static_cast<Bounds>(bounds),
                           views.data(),
                           &outside,
                           reinterpret_cast<void*>(stream)};
  ++kernel.calls;
  run_released([&] { return kernel.run.row_lookup(args); });
  return outside;
}

void bag_backward(KernelInfo& kernel, const TableSet& tables, std::int64_t batch, std::uintptr_t values,
                  std::int64_t num_values, std::uintptr_t offsets, std::uintptr_t weights, int bounds,
                  std::uintptr_t grad, std::int64_t grad_stride, std::uintptr_t grad_weights,
                  const OptimizerConfig& optimizer, std::uintptr_t stream) {
  if (kernel.run.bag_backward == nullptr) throw py::value_error("bag_backward: " + kernel.name + " is no bag backward");
  expect_memory("grad", grad, batch * tables.dims());
  const BagBackwardArgs args{tables.views(),
                             indices_of(tables, batch, values, num_values, offsets, weights),
                             static_cast<Bounds>(bounds),
                             matrix(grad, batch, tables.dims(), grad_stride, DType::f32),
                             optimizer,
                             reinterpret_cast<float*>(grad_weights),
                             reinterpret_cast<void*>(stream)};
  ++kernel.calls;
  run_released([&] { return kernel.run.bag_backward(args); });
}

}  // namespace

void bind_embedding(py::module_& m) {
  py::class_<TableSet>(m, "TableSet")
      .def(py::init<const std::vector<TableSet::Row>&>())
      .def("__len__", &TableSet::size)
      .def_property_readonly("dims", &TableSet::dims)
      .def("serve_with", &TableSet::serve_with, py::arg("kernel"), py::arg("generation"), py::arg("device_type"),
           py::arg("device_index"));
  // made once for an optimizer's settings; the step changes
  py::class_<OptimizerConfig>(m, "OptimizerConfig")
      .def(py::init([](int kind, float lr, float eps, float weight_decay, float beta1, float beta2, bool stochastic,
                       std::uint64_t seed, std::int64_t step, std::int64_t first_table) {
             return OptimizerConfig{static_cast<OptimizerConfig::Kind>(kind),
                                    lr,
                                    eps,
                                    weight_decay,
                                    beta1,
                                    beta2,
                                    step,
                                    stochastic ? Rounding::stochastic : Rounding::nearest,
                                    seed,
                                    first_table};
           }),
           py::arg("kind"), py::arg("lr"), py::arg("eps"), py::arg("weight_decay"), py::arg("beta1"), py::arg("beta2"),
           py::arg("stochastic"), py::arg("seed"), py::arg("step"), py::arg("first_table"));
  m.def("check_offsets", [](std::uintptr_t offsets, std::int64_t bags, std::int64_t num_values) {
    expect_memory("offsets", offsets, bags + 1);
    raise_if_failed(validate(BagIndices{bags, 1, nullptr, num_values, reinterpret_cast<const std::int64_t*>(offsets)}));
  });
  m.def("bag_forward", &bag_forward);
  bind_serve_bags(m);
  m.def("row_lookup", &row_lookup);
  m.def("bag_backward", &bag_backward);
}

}  // namespace octavo::bindings
