#include "octavo/dispatch.hpp"

#include <pybind11/stl.h>

#include "module.hpp"

namespace octavo::bindings {

void bind_dispatch(py::module_& m) {
  py::class_<Problem>(m, "Problem")
      .def(py::init([](Op op, std::int64_t rows, std::int64_t n, std::int64_t k, DType x_dtype, DType out_dtype,
                       std::string epilogue, Device device, std::optional<Numerics> numerics) {
             return Problem{op, rows, n, k, x_dtype, out_dtype, std::move(epilogue), device, numerics};
           }),
           py::arg("op"), py::arg("m"), py::arg("n"), py::arg("k"), py::arg("x_dtype"), py::arg("out_dtype"),
           py::arg("epilogue"), py::arg("device"), py::arg("numerics"));
  py::class_<ErrorEstimate>(m, "ErrorEstimate")
      .def(py::init([](double rel_l1, double mere, double signal_rel, double post_norm, double sqnr_db) {
             return ErrorEstimate{rel_l1, mere, signal_rel, post_norm, sqnr_db};
           }),
           py::arg("rel_l1"), py::arg("mere"), py::arg("signal_rel"), py::arg("post_norm"), py::arg("sqnr_db"))
      .def_readonly("rel_l1", &ErrorEstimate::rel_l1)
      .def_readonly("mere", &ErrorEstimate::mere)
      .def_readonly("signal_rel", &ErrorEstimate::signal_rel)
      .def_readonly("post_norm", &ErrorEstimate::post_norm)
      .def_readonly("sqnr_db", &ErrorEstimate::sqnr_db);
  py::class_<Requirement>(m, "Requirement")
      .def(py::init([](std::optional<double> max_rel_l1, std::optional<double> max_mere,
                       std::optional<double> max_signal_rel, std::optional<double> max_post_norm,
                       std::optional<double> min_sqnr_db, bool deterministic) {
             return Requirement{max_rel_l1, max_mere, max_signal_rel, max_post_norm, min_sqnr_db, deterministic};
           }),
           py::arg("max_rel_l1"), py::arg("max_mere"), py::arg("max_signal_rel"), py::arg("max_post_norm"),
           py::arg("min_sqnr_db"), py::arg("deterministic"));
  py::class_<Candidate>(m, "Candidate")
      .def_property_readonly(
          "kernel", [](const Candidate& c) { return c.kernel; }, py::return_value_policy::reference)
      .def_readonly("admitted", &Candidate::admitted)
      .def_readonly("predicted_us", &Candidate::predicted_us)
      .def_property_readonly("source", [](const Candidate& c) { return to_string(c.source); })
      .def_readonly("error", &Candidate::error)
      .def_readonly("reason", &Candidate::reason);
  py::class_<Decision>(m, "Decision")
      .def_readonly("candidates", &Decision::candidates)
      .def_readonly("reason", &Decision::reason);

  m.def("choose", &choose, py::arg("problem"), py::arg("requirement"), py::arg("evidence"));
  m.def("nominal_error", &nominal_error, py::arg("numerics"));
  m.def(
      "record_cost",
      [](const KernelInfo& kernel, const Problem& problem, double us) { record_cost(kernel, problem, us); },
      py::arg("kernel"), py::arg("problem"), py::arg("us"));
  m.def("forget_costs", &forget_costs);
  m.def("cost_features", &cost_features, py::arg("problem"));
  m.def(
      "set_fitted_cost",
      [](const KernelInfo& kernel, DType x_dtype, DType out_dtype, const CostFeatures& coefficients) {
        set_fitted_cost(kernel, x_dtype, out_dtype, coefficients);
      },
      py::arg("kernel"), py::arg("x_dtype"), py::arg("out_dtype"), py::arg("coefficients"));
  m.def("forget_fitted_costs", &forget_fitted_costs);
  m.def("m_bucket", &m_bucket, py::arg("m"));
}

}  // namespace octavo::bindings
