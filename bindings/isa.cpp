#include "octavo/isa.hpp"

#include "module.hpp"
#include "octavo/memory.hpp"
#include "octavo/threading.hpp"

namespace octavo::bindings {

void bind_isa(py::module_& m) {
  m.def("isa", [] { return std::string(to_string(active_isa())); });
  m.def("force_isa", [](const std::string& name) {
    if (!force_isa(name))
      throw py::value_error("isa: this CPU has no '" + name + "'; use baseline, avx2, avx512 or amx as far as it goes");
  });
  m.def("cpu_features", [] {
    py::dict d;
    for (const NamedFeature& feature : kNamedFeatures) d[feature.name] = cpu_features().*feature.has;
    return d;
  });
  m.def("threads", &threads);
  m.def("set_threads", &set_threads, py::arg("n"));
  m.def("borrows_openmp", &borrows_openmp);
  m.def("advise_huge_pages", [](std::uintptr_t data, std::size_t bytes) {
    return advise_huge_pages(reinterpret_cast<const void*>(data), bytes);
  });
}

}  // namespace octavo::bindings
