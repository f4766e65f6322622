// A linear layer with everything resolved but x: a Python callable whose calls stay in C.
#pragma once

#include <array>

#include "octavo/linear.hpp"
#include "octavo/registry.hpp"
#include "torch_tensors.hpp"

namespace octavo::bindings {

constexpr int kRowBuckets = 65;  // of m_bucket
constexpr int kMaxDims = 8;

struct PreparedLinear {
  PyObject_HEAD;
  vectorcallfunc vectorcall;
  const PackedWeight* weight;
  Epilogue epilogue;
  DlDevice device;
  DlType x_type, y_type;
  std::int64_t version;                                         // of codes, when the weight's layouts were made
  std::uint64_t generation;                                     // of the choice of kernels
  int threads;                                                  // that the choice was made for
  std::array<std::array<KernelInfo*, kRowBuckets>, 2> kernels;  // [with residual][bucket of M]; nullptr: not chosen yet

  // Owned.
  PyObject* weight_object;            // _core.PackedWeight
  PyObject* codes;                    // tensor
  PyObject* vectors;                  // tuple of detached tensors: what the epilogue points to
  PyObject* trainable;                // tuple of tensors that would need gradients of a recorded call
  PyObject* norm;                     // octavo.ops.Norm or None
  PyObject *norm_weight, *norm_bias;  // its tensors, which may get other memory; or None
  PyObject *activation, *x_dtype, *y_dtype;
  PyObject* slow;  // slow(self, x, out, residual): checks, chooses, raises; None: the call gives NotImplemented
};

// Kernels chosen in an older generation, or for another number of threads, are chosen anew.
std::uint64_t generation();

// A call of a prepared layer that a plain launch serves. kernel: nullptr when there is nothing to compute.
struct PreparedCall {
  KernelInfo* kernel = nullptr;
  LinearArgs args;
  py::object y;
};

// False without an exception when a plain launch will not do: octavo.ops then looks closer. With `saved`, what the norm
// sees will be kept in a new tensor like y, handed over there.
bool resolve(PreparedLinear& self, PyObject* x, PyObject* out, PyObject* residual, PreparedCall& call,
             py::object* saved = nullptr);

// The layer on x, or nullptr without an exception when a plain launch will not do. Throws what the kernel's status
// says.
PyObject* serve(PreparedLinear& self, PyObject* x, PyObject* out, PyObject* residual, py::object* saved = nullptr);

// Layers on their x in one parallel region: y of each, or NotImplemented where a plain launch will not do. `layers`:
// PreparedLinear or None; `outs`: None or one tensor or None each.
py::list serve_group(const py::tuple& layers, const py::sequence& xs, const py::object& outs);

}  // namespace octavo::bindings
