#include "octavo/pairwise.hpp"

#include "batch_view.hpp"
#include "module.hpp"
#include "octavo/registry.hpp"

namespace octavo::bindings {

void bind_pairwise(py::module_& m) {
  m.def(
      "pairwise_dots",
      [](KernelInfo& kernel, std::int64_t batch, const Batch& x, int x_pairs, const Batch& y, int pairs,
         std::uintptr_t out, std::int64_t out_batch_stride, std::int64_t out_row_stride, int out_dtype,
         std::uintptr_t stream) {
        if (kernel.run.pairwise_dots == nullptr)
          throw py::value_error("pairwise_dots: " + kernel.name + " is no kernel of this op");
        PairwiseArgs args;
        args.batch = batch;
        args.x = view_of("x", x, batch);
        args.x_pairs = static_cast<Pairs>(x_pairs);
        args.y = view_of("y", y, batch);
        args.pairs = static_cast<Pairs>(pairs);
        args.out = reinterpret_cast<void*>(out);
        args.out_batch_stride = out_batch_stride;
        args.out_row_stride = out_row_stride;
        args.out_dtype = static_cast<DType>(out_dtype);
        args.stream = reinterpret_cast<void*>(stream);
        const std::int64_t left = args.x_pairs == Pairs::all ? args.x.rows : args.y.cols, right = args.y.rows;
        expect_memory("out", out, batch * (args.pairs == Pairs::all ? left * right : left * (left - 1) / 2));
        ++kernel.calls;
        run_released([&] { return kernel.run.pairwise_dots(args); });
      },
      py::arg("kernel"), py::arg("batch"), py::arg("x"), py::arg("x_pairs"), py::arg("y"), py::arg("pairs"),
      py::arg("out"), py::arg("out_batch_stride"), py::arg("out_row_stride"), py::arg("out_dtype"),
      py::arg("stream") = 0);
}

}  // namespace octavo::bindings
