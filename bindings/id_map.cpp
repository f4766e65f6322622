#include "octavo/id_map.hpp"

#include <pybind11/stl.h>

#include <memory>
#include <tuple>
#include <vector>

#include "module.hpp"
#include "octavo/registry.hpp"

namespace octavo::bindings {
namespace {

const std::int64_t* ints(std::uintptr_t address) { return reinterpret_cast<const std::int64_t*>(address); }
std::int64_t* mutable_ints(std::uintptr_t address) { return reinterpret_cast<std::int64_t*>(address); }
IdSlot* slots_at(std::uintptr_t address) { return reinterpret_cast<IdSlot*>(address); }

py::bytes packed(const std::vector<std::int64_t>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(std::int64_t)};
}

template <class Work>
auto released(Work&& work) {
  const py::gil_scoped_release release;
  return work();
}

// `maps`: address and number of each table's slots, (0, 0) for a table whose values are rows.
void find_rows(KernelInfo& kernel, const std::vector<std::tuple<std::uintptr_t, std::int64_t>>& maps,
               std::int64_t batch, std::uintptr_t values, std::int64_t num_values, std::uintptr_t offsets,
               std::uintptr_t rows, std::uintptr_t stream) {
  if (kernel.run.find_rows == nullptr) throw py::value_error("find_rows: " + kernel.name + " finds no rows of ids");
  std::vector<IdSlots> views;
  views.reserve(maps.size());
  for (const auto& [address, count] : maps) views.push_back({slots_at(address), count});
  const FindRowsArgs args{views.data(),
                          {batch, static_cast<std::int64_t>(views.size()), ints(values), num_values, ints(offsets)},
                          mutable_ints(rows),
                          reinterpret_cast<void*>(stream)};
  ++kernel.calls;
  run_released([&] { return kernel.run.find_rows(args); });
}

}  // namespace

void bind_id_map(py::module_& m) {
  py::class_<IdMap>(m, "IdMap")
      .def(py::init([](std::int64_t max_rows, std::int64_t admit_after, std::int64_t max_age) {
             const IdMapConfig config{max_rows, admit_after, max_age};
             raise_if_failed(validate(config));
             return std::make_unique<IdMap>(config);
           }),
           py::arg("max_rows"), py::arg("admit_after") = 1, py::arg("max_age") = 0)
      .def("__len__", &IdMap::size)
      .def_property_readonly("nbytes", &IdMap::bytes)
      .def_property_readonly("removed", &IdMap::removed)
      .def_property_readonly("refused", &IdMap::refused)
      .def_property_readonly("floor", &IdMap::floor)
      // Rows that the last lookup_or_insert handed out, and their ids.
      .def("fresh",
           [](const IdMap& map, std::uintptr_t rows, std::uintptr_t ids) {
             std::int64_t i = 0;
             for (const std::int64_t row : map.fresh()) {
               mutable_ints(rows)[i] = row;
               mutable_ints(ids)[i++] = map.id_of(row);
             }
           })
      .def("freed", [](const IdMap& map) { return packed(map.freed()); })
      .def("erased", [](const IdMap& map) { return packed(map.erased()); })
      .def("mark_saved", &IdMap::mark_saved)
      // For a copy of the slots, int64 [num_slots, 2]: id, row (-1: empty).
      .def_property_readonly("num_slots", &IdMap::slots)
      .def_property_readonly("copy_is_old", &IdMap::copy_is_old)
      .def("mark_copied", &IdMap::mark_copied)
      .def("changed_slots",
           [](const IdMap& map) -> py::object {
             if (map.all_changed()) return py::none();
             return packed(map.changed());
           })
      .def("copy_slots", [](const IdMap& map, std::uintptr_t to) { released([&] { map.copy_slots(slots_at(to)); }); })
      .def("copy_slots", [](const IdMap& map, std::uintptr_t places, std::int64_t n,
                            std::uintptr_t to) { released([&] { map.copy_slots(ints(places), n, slots_at(to)); }); })
      .def("lookup", [](const IdMap& map, std::uintptr_t ids, std::int64_t n,
                        std::uintptr_t rows) { released([&] { map.lookup(ints(ids), n, mutable_ints(rows)); }); })
      .def("lookup_or_insert",
           [](IdMap& map, std::uintptr_t ids, std::int64_t n, std::int64_t now, std::uintptr_t rows) {
             return released([&] {
               map.lookup_or_insert(ints(ids), n, now, mutable_ints(rows));
               return map.fresh().size();
             });
           })
      .def("erase", [](IdMap& map, std::uintptr_t ids,
                       std::int64_t n) { return released([&] { return map.erase(ints(ids), n); }); })
      .def("evict", [](IdMap& map, std::int64_t now) { return released([&] { return map.evict(now); }); })
      .def("entries",
           [](const IdMap& map, std::int64_t start, std::int64_t stop, std::uintptr_t rows, std::uintptr_t ids,
              std::uintptr_t last_seen, std::uintptr_t scores) {
             return released([&] {
               return map.entries(start, stop, mutable_ints(rows), mutable_ints(ids), mutable_ints(last_seen),
                                  mutable_ints(scores));
             });
           })
      .def("restore",
           [](IdMap& map, std::int64_t n, std::uintptr_t rows, std::uintptr_t ids, std::uintptr_t last_seen,
              std::uintptr_t scores, std::uint32_t floor) {
             run_released([&] { return map.restore(n, ints(rows), ints(ids), ints(last_seen), ints(scores), floor); });
           })
      // The sketch of sightings: bytes of its counters, and sightings since they were halved.
      .def("sightings",
           [](IdMap& map) {
             const auto& counters = map.sightings().counters();
             return py::bytes(reinterpret_cast<const char*>(counters.data()), counters.size());
           })
      .def_property_readonly("since_halving", [](IdMap& map) { return map.sightings().since_halving; })
      .def("restore_sightings", [](IdMap& map, const py::buffer& counters, std::int64_t since_halving) {
        const py::buffer_info info = counters.request();
        auto& own = map.sightings().counters();
        if (info.size * info.itemsize != static_cast<py::ssize_t>(own.size())) return false;  // of another size of map
        const auto* bytes = static_cast<const std::uint8_t*>(info.ptr);
        own.assign(bytes, bytes + own.size());
        map.sightings().since_halving = since_halving;
        return true;
      });
  m.def("draw_rows", [](std::uintptr_t ids, std::int64_t n, std::int64_t dim, std::uint64_t seed, float half_width,
                        std::uintptr_t out) {
    released([&] { draw_rows(ints(ids), n, dim, seed, half_width, reinterpret_cast<float*>(out)); });
  });
  m.def("find_rows", &find_rows);
  m.def("mark_rows", [](std::uintptr_t values, std::int64_t n, std::uintptr_t flags, std::int64_t rows) {
    released([&] { mark_rows(ints(values), n, reinterpret_cast<std::uint8_t*>(flags), rows); });
  });
}

}  // namespace octavo::bindings
