// Bags' forward from torch tensors to a torch tensor without Python in between: what a call costs beside its lookups.
#include "table_set.hpp"

namespace octavo::bindings {

namespace {

// Below this many numbers read and written a call is over before another thread could take the interpreter lock.
constexpr std::int64_t kReleaseLockNumbers = 1 << 16;

// A plain tensor [n] of this type, neighbours in memory, on the tables' device.
bool as_vector(const Torch& torch, PyObject* object, DlType type, DlDevice device, DlTensor& out) {
  return torch.is_plain(object) && torch.view(object, out) && out.dtype == type && out.ndim == 1 &&
         out.strides[0] == 1 && out.device.type == device.type && out.device.id == device.id &&
         (out.address() != nullptr || out.shape[0] == 0);
}

// [batch, dims] that a kernel may write to: new, or `given` where nothing about it wants a closer look.
py::object output(const Torch& torch, PyObject* given, std::int64_t batch, std::int64_t dims, DlType type,
                  DlDevice device, MatrixView& view) {
  py::object out;
  DlTensor t;
  if (given == Py_None) {
    out = py::reinterpret_steal<py::object>(torch.allocate_output({batch, dims}, type, device));
    if (!out || torch.api->view(out.ptr(), &t) != 0) throw py::error_already_set();
  } else {
    if (!torch.is_plain(given) || !torch.view(given, t) || t.dtype != type || t.ndim != 2 || t.shape[0] != batch ||
        t.shape[1] != dims || t.device.type != device.type || t.device.id != device.id || t.strides[1] != 1 ||
        t.strides[0] < dims || (torch.grad_enabled() && torch.requires_grad(given)))
      return {};
    out = py::reinterpret_borrow<py::object>(given);
  }
  view = {t.address(), batch, dims, batch > 1 ? t.strides[0] : dims, dtype_of(type)};
  return out;
}

py::object serve(TableSet& tables, PyObject* values, PyObject* offsets, PyObject* weights, Bounds bounds, DlType type,
                 PyObject* out) {
  const Torch& torch = Torch::instance();
  KernelInfo* kernel = tables.kernel();
  if (kernel == nullptr || torch.has_dual_level()) return {};
  const DlDevice device = tables.device();
  DlTensor v, o, w;
  if (!as_vector(torch, values, kDlI64, device, v) || !as_vector(torch, offsets, kDlI64, device, o) ||
      (weights != Py_None && !as_vector(torch, weights, kDlF32, device, w)))
    return {};
  const std::int64_t lookups = v.shape[0], bags = o.shape[0] - 1;
  if (bags < 0 || bags % tables.size() != 0 || (weights != Py_None && w.shape[0] != lookups)) return {};
  BagForwardArgs args;
  args.tables = tables.views();
  args.indices = {bags / tables.size(),
                  tables.size(),
                  static_cast<const std::int64_t*>(v.address()),
                  lookups,
                  static_cast<const std::int64_t*>(o.address()),
                  weights == Py_None ? nullptr : static_cast<const float*>(w.address())};
  args.bounds = bounds;
  py::object y = output(torch, out, args.indices.batch, tables.dims(), type, device, args.out);
  if (!y) return {};
  args.stream = torch.stream(device);
  ++kernel->calls;
  const std::int64_t numbers = bags + (lookups / tables.size() + args.indices.batch) * tables.dims();
  if (device.type == kDlCpu && numbers < kReleaseLockNumbers) {
    raise_if_failed(kernel->run.bag_forward(args));
  } else {
    run_released([&] { return kernel->run.bag_forward(args); });
  }
  return y;
}

// serve_bags(tables, values, offsets, weights, bounds, is_bf16, out): pooled rows, or NotImplemented where something
// wants a closer look.
PyObject* serve_bags(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 7) {
    PyErr_SetString(PyExc_TypeError, "serve_bags: expected 7 arguments");
    return nullptr;
  }
  return guarded([&]() -> PyObject* {
    auto& tables = py::handle(args[0]).cast<TableSet&>();
    const auto bounds = static_cast<Bounds>(PyLong_AsLong(args[4]));
    if (bounds != Bounds::warn)  // which counts
      if (py::object y =
              serve(tables, args[1], args[2], args[3], bounds, args[5] == Py_True ? kDlBf16 : kDlF32, args[6]))
        return y.release().ptr();
    Py_RETURN_NOTIMPLEMENTED;
  });
}

// addresses(dicts of tensors or None ...): where their numbers lie, as bytes to compare.
PyObject* addresses(PyObject*, PyObject* const* dicts, Py_ssize_t count) {
  return guarded([&]() -> PyObject* {
    std::vector<void*> found;
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject *key, *tensor;
      if (!PyDict_Check(dicts[i])) throw py::type_error("addresses: expected dicts of tensors");
      for (Py_ssize_t at = 0; PyDict_Next(dicts[i], &at, &key, &tensor);)
        found.push_back(tensor == Py_None ? nullptr : Torch::instance().address(tensor));
    }
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(found.data()),
                                     static_cast<Py_ssize_t>(found.size() * sizeof(void*)));
  });
}

PyMethodDef g_addresses = {"addresses", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(addresses)),
                           METH_FASTCALL, "Where the tensors of some dicts lie, as bytes to compare."};
PyMethodDef g_serve_bags = {"serve_bags", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(serve_bags)),
                            METH_FASTCALL, "Pooled rows, or NotImplemented where octavo.ops has to look closer."};

}  // namespace

void bind_serve_bags(py::module_& m) {
  m.attr("addresses") = py::reinterpret_steal<py::object>(PyCFunction_New(&g_addresses, nullptr));
  m.attr("serve_bags") = py::reinterpret_steal<py::object>(PyCFunction_New(&g_serve_bags, nullptr));
}

}  // namespace octavo::bindings
