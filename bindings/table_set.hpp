// The tables of a call as Python hands them over, and the kernel that serves them.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <tuple>
#include <vector>

#include "module.hpp"
#include "octavo/embedding.hpp"
#include "octavo/registry.hpp"
#include "prepared_linear.hpp"
#include "torch_tensors.hpp"

namespace octavo::bindings {

// Tables of one module, read once: a call passes this handle instead of a list. The owner keeps the tensors alive.
class TableSet {
 public:
  // name, rows, num_rows, dim, row_stride, dtype, scale, mean, optimizer_state, scale_stride, exponents
  using Row = std::tuple<std::string, std::uintptr_t, std::int64_t, std::int64_t, std::int64_t, int, std::uintptr_t,
                         bool, std::uintptr_t, std::int64_t, std::uintptr_t>;

  explicit TableSet(const std::vector<Row>& rows) {
    names_.reserve(rows.size());  // views point into it
    for (const auto& [name, data, num_rows, dim, stride, dtype, scale, mean, state, scale_stride, exponents] : rows) {
      expect_memory(("table '" + name + "'").c_str(), data, num_rows * dim);
      names_.push_back(name);
      views_.push_back({names_.back().c_str(), reinterpret_cast<void*>(data), num_rows, dim, stride,
                        static_cast<DType>(dtype), reinterpret_cast<float*>(scale), mean ? Pooling::mean : Pooling::sum,
                        reinterpret_cast<float*>(state), scale_stride, reinterpret_cast<std::uint8_t*>(exponents)});
      dims_ += dim;
    }
  }
  TableSet(const TableSet&) = delete;
  TableSet& operator=(const TableSet&) = delete;

  const TableView* views() const { return views_.data(); }
  std::int64_t size() const { return static_cast<std::int64_t>(views_.size()); }
  std::int64_t dims() const { return dims_; }

  // Calls of serve_bags run `kernel` from now on, until kernels are chosen anew: it was chosen in this `generation`. A
  // device as DLPack numbers it.
  void serve_with(KernelInfo& kernel, std::uint64_t generation, int device_type, int device_index) {
    kernel_ = &kernel;
    device_ = {device_type, device_index};
    generation_ = generation;
  }
  KernelInfo* kernel() const { return generation_ == generation() ? kernel_ : nullptr; }
  DlDevice device() const { return device_; }

 private:
  std::vector<std::string> names_;
  std::vector<TableView> views_;
  std::int64_t dims_ = 0;
  KernelInfo* kernel_ = nullptr;
  DlDevice device_{};
  std::uint64_t generation_ = 0;
};

// `serve_bags`: the forward of bags as one C function.
void bind_serve_bags(py::module_& m);

}  // namespace octavo::bindings
