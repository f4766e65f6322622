#include "octavo/statistics.hpp"

#include <pybind11/native_enum.h>

#include "module.hpp"

namespace octavo::bindings {
namespace {

template <class T>
T* array(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

void bind_statistics(py::module_& m) {
  py::native_enum<MomentCount>(m, "MomentCount", "enum.IntEnum")
      .value("rows", kRows)
      .value("nan_rows", kNanRows)
      .value("infinite_rows", kInfiniteRows)
      .finalize();
  py::native_enum<TailCount>(m, "TailCount", "enum.IntEnum")
      .value("zero_rows", kZeroRows)
      .value("elements", kElements)
      .value("zeros", kZeros)
      .value("negatives", kNegatives)
      .value("underflow_e4m3_row", kUnderflowE4M3Row)
      .value("underflow_int8_row", kUnderflowInt8Row)
      .value("underflow_e4m3_tensor", kUnderflowE4M3Tensor)
      .value("underflow_int8_tensor", kUnderflowInt8Tensor)
      .value("beyond_last_amax", kBeyondLastAmax)
      .finalize();
  py::native_enum<TailSum>(m, "TailSum", "enum.IntEnum")
      .value("mean", kMean)
      .value("second", kSecond)
      .value("third", kThird)
      .value("fourth", kFourth)
      .value("share_squares", kShareSquares)
      .value("amax", kAmax)
      .value("last_amax", kLastAmax)
      .finalize();
  m.attr("AMAX_BINS") = kAmaxBins;
  m.attr("SHARE_BINS") = kShareBins;

  // Addresses of arrays that stay the caller's and must outlive it.
  py::class_<Moments>(m, "Moments")
      .def(py::init([](std::int64_t k, std::int64_t rank, std::uintptr_t counts, std::uintptr_t mean,
                       std::uintptr_t scatter, std::uintptr_t diagonal) {
             return Moments{k,
                            rank,
                            array<std::int64_t>(counts),
                            array<double>(mean),
                            array<double>(scatter),
                            array<double>(diagonal)};
           }),
           py::arg("k"), py::arg("rank"), py::arg("counts"), py::arg("mean"), py::arg("scatter"), py::arg("diagonal"))
      .def("merge", [](const Moments& into, const Moments& from) { run_released([&] { return merge(from, into); }); });
  py::class_<Tails>(m, "Tails")
      .def(py::init([](std::uintptr_t counts, std::uintptr_t sums, std::uintptr_t row_amax, std::uintptr_t shares) {
             return Tails{array<std::int64_t>(counts), array<double>(sums), array<std::int64_t>(row_amax),
                          array<std::int64_t>(shares)};
           }),
           py::arg("counts"), py::arg("sums"), py::arg("row_amax"), py::arg("shares"))
      .def("merge", [](const Tails& into, const Tails& from) { merge(from, into); });
  m.def(
      "observe",
      [](std::uintptr_t x, std::int64_t rows, std::int64_t cols, std::int64_t stride, int dtype, const Moments& moments,
         const Tails* tails) {
        expect_memory("x", x, rows * cols);
        const MatrixView view = matrix(x, rows, cols, stride, static_cast<DType>(dtype));
        run_released([&] { return observe(view, moments, tails); });
      },
      py::arg("x"), py::arg("rows"), py::arg("cols"), py::arg("stride"), py::arg("dtype"), py::arg("moments"),
      py::arg("tails"));
  m.def(
      "sketch_signs",
      [](std::int64_t k, std::int64_t rank, std::uintptr_t out) { sketch_signs(k, rank, array<float>(out)); },
      py::arg("k"), py::arg("rank"), py::arg("out"));
}

}  // namespace octavo::bindings
