#include "octavo/pairwise.hpp"

#include <pybind11/stl.h>

#include <tuple>

#include "module.hpp"
#include "octavo/registry.hpp"

namespace octavo::bindings {

namespace {

// data, rows, cols, batch_stride, row_stride, col_stride, dtype
using Operand = std::tuple<std::uintptr_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, int>;

BatchView view_of(const Operand& operand) {
  const auto& [data, rows, cols, batch_stride, row_stride, col_stride, dtype] = operand;
  return {
      reinterpret_cast<const void*>(data), rows, cols, batch_stride, row_stride, col_stride, static_cast<DType>(dtype)};
}

}  // namespace

void bind_pairwise(py::module_& m) {
  m.def(
      "pairwise_dots",
      [](KernelInfo& kernel, std::int64_t batch, const Operand& x, int x_pairs, const Operand& y, int pairs,
         std::uintptr_t out, std::int64_t out_batch_stride, std::int64_t out_row_stride, int out_dtype,
         std::uintptr_t stream) {
        if (kernel.run.pairwise_dots == nullptr)
          throw py::value_error("pairwise_dots: " + kernel.name + " is no kernel of this op");
        PairwiseArgs args;
        args.batch = batch;
        args.x = view_of(x);
        args.x_pairs = static_cast<Pairs>(x_pairs);
        args.y = view_of(y);
        args.pairs = static_cast<Pairs>(pairs);
        args.out = reinterpret_cast<void*>(out);
        args.out_batch_stride = out_batch_stride;
        args.out_row_stride = out_row_stride;
        args.out_dtype = static_cast<DType>(out_dtype);
        args.stream = reinterpret_cast<void*>(stream);
        ++kernel.calls;
        run_released([&] { return kernel.run.pairwise_dots(args); });
      },
      py::arg("kernel"), py::arg("batch"), py::arg("x"), py::arg("x_pairs"), py::arg("y"), py::arg("pairs"),
      py::arg("out"), py::arg("out_batch_stride"), py::arg("out_row_stride"), py::arg("out_dtype"),
      py::arg("stream") = 0);
}

}  // namespace octavo::bindings
