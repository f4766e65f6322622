#include "octavo/registry.hpp"

#include <pybind11/functional.h>
#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include "module.hpp"

namespace octavo::bindings {

namespace {

template <class Enum>
std::string name_of(Enum value) {
  return to_string(value);
}

// A row of another library: filtered, ranked and counted here, run by octavo.ops.
void register_external(const std::string& name, Op op, Numerics numerics, const std::string& library, Device device,
                       bool trusted, bool deterministic, DType product, double overhead_us, double gmacs_per_s,
                       double gbytes_per_s, const py::object& accepts, double tolerance, bool only_measured) {
  if (library == "octavo")
    throw py::value_error(
        "register: library 'octavo' is for kernels compiled into octavo; name the library that runs it");
  KernelInfo row;
  row.name = name;
  row.op = op;
  row.library = library;
  row.device = device;
  row.numerics = numerics;
  row.deterministic = deterministic;
  row.product = product;
  row.cost = {overhead_us, gmacs_per_s, gbytes_per_s};
  row.tolerance = tolerance;
  row.only_measured = only_measured;
  if (!accepts.is_none()) row.accepts = accepts.cast<std::function<bool(std::int64_t, std::int64_t, std::int64_t)>>();
  row.state = trusted ? Qualification::trusted : Qualification::unknown;
  raise_if_failed(Registry::instance().add(std::move(row)));
}

}  // namespace

void bind_registry(py::module_& m) {
  py::native_enum<Op>(m, "Op", "enum.IntEnum")
      .value("linear", Op::linear)
      .value("quantize", Op::quantize)
      .value("bag_forward", Op::bag_forward)
      .value("bag_backward", Op::bag_backward)
      .value("linear_epilogue_backward", Op::linear_epilogue_backward)
      .value("linear_grad_input", Op::linear_grad_input)
      .value("linear_grad_weight", Op::linear_grad_weight)
      .value("pairwise_dots", Op::pairwise_dots)
      .value("add_norm", Op::add_norm)
      .value("row_lookup", Op::row_lookup)
      .value("find_rows", Op::find_rows)
      .finalize();
  py::native_enum<Device>(m, "Device", "enum.IntEnum").value("cpu", Device::cpu).value("cuda", Device::cuda).finalize();
  py::native_enum<Numerics>(m, "Numerics", "enum.IntEnum")
      .value("fp32", Numerics::fp32)
      .value("bf16", Numerics::bf16)
      .value("e4m3_row", Numerics::e4m3_row)
      .value("e4m3_weight_only", Numerics::e4m3_weight_only)
      .value("int8_dynamic", Numerics::int8_dynamic)
      .value("e4m3_row_fast", Numerics::e4m3_row_fast)
      .value("e4m3_block", Numerics::e4m3_block)
      .finalize();

  // A row of the registry: lives as long as the process.
  py::class_<KernelInfo, std::unique_ptr<KernelInfo, py::nodelete>>(m, "Kernel")
      .def_readonly("name", &KernelInfo::name)
      .def_readonly("library", &KernelInfo::library)
      .def_readonly("formats", &KernelInfo::formats)
      .def_readonly("deterministic", &KernelInfo::deterministic)
      .def_readonly("op", &KernelInfo::op)
      .def_readonly("device", &KernelInfo::device)
      .def_readonly("numerics", &KernelInfo::numerics)
      .def_readonly("product", &KernelInfo::product)
      .def_readonly("norm_input", &KernelInfo::norm_input)
      .def_readonly("tolerance", &KernelInfo::tolerance)
      .def_readonly("takes_codes", &KernelInfo::takes_codes)
      .def_property_readonly("takes_batches", [](const KernelInfo& k) { return k.run.linear_batch != nullptr; })
      .def("works_with", &work_together, py::arg("other"))
      .def_readonly("only_measured", &KernelInfo::only_measured)
      .def_readonly("note", &KernelInfo::note)
      .def_readonly("calls", &KernelInfo::calls)
      .def_property_readonly("state", [](const KernelInfo& k) { return name_of(k.state); })
      .def_property_readonly("supported", &KernelInfo::is_supported)
      .def_property_readonly("needs", &needed_features)
      .def(
          "accepts",
          [](const KernelInfo& k, std::int64_t rows, std::int64_t n, std::int64_t depth) {
            return !k.accepts || k.accepts(rows, n, depth);
          },
          py::arg("m"), py::arg("n"), py::arg("k"))
      .def("count", [](KernelInfo& k) { ++k.calls; })
      .def("qualify",
           [](KernelInfo& k) {
             k.state = Qualification::qualified;
             k.note.clear();
           })
      .def(
          "quarantine",
          [](KernelInfo& k, const std::string& why) {
            k.state = Qualification::quarantined;
            k.note = why;
          },
          py::arg("why"))
      .def("forget",
           [](KernelInfo& k) {
             k.state = Qualification::unknown;
             k.note.clear();
           })
      .def("__repr__", [](const KernelInfo& k) { return "<Kernel " + k.name + " " + to_string(k.state) + ">"; });

  m.def(
      "kernel",
      [](const std::string& name) {
        KernelInfo* row = Registry::instance().find(name);
        if (row == nullptr) throw py::key_error("no kernel named " + name + "; octavo.info()['kernels'] lists them");
        return row;
      },
      py::return_value_policy::reference);
  m.def("kernels", [] { return Registry::instance().all(); }, py::return_value_policy::reference);
  m.def("register", &register_external, py::arg("name"), py::arg("op"), py::arg("numerics"), py::arg("library"),
        py::arg("device"), py::arg("trusted"), py::arg("deterministic"), py::arg("product"), py::arg("overhead_us"),
        py::arg("gmacs_per_s"), py::arg("gbytes_per_s"), py::arg("accepts") = py::none(),
        py::arg("tolerance") = KernelInfo().tolerance, py::arg("only_measured") = false);
}

}  // namespace octavo::bindings
