#include "prepared_linear.hpp"

#include <structmember.h>

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "module.hpp"
#include "octavo/dispatch.hpp"
#include "octavo/grouped.hpp"
#include "octavo/threading.hpp"

namespace octavo::bindings {

namespace {

// Below this many multiply-adds a call is over before another thread could take the interpreter lock.
constexpr double kReleaseLockMacs = 60000;

std::uint64_t g_generation = 0;

// [..., cols] as a matrix: a last dimension of stride 1, one stride between rows. One column of another stride is for
// the slow path as well: complex numbers' imaginary parts are such, and may be negated on the way (Tensor.is_neg).
bool as_matrix(const DlTensor& t, std::int64_t cols, MatrixView& out) {
  const int last = t.ndim - 1;
  if (last < 0 || t.shape[last] != cols || t.strides[last] != 1) return false;
  std::int64_t rows = 1, stride = cols;
  for (int d = last - 1; d >= 0; --d) {
    if (t.shape[d] == 1) continue;
    if (rows == 1)
      stride = t.strides[d];
    else if (t.strides[d] != stride * rows)
      return false;
    rows *= t.shape[d];
  }
  out = {t.address(), rows, cols, stride, dtype_of(t.dtype)};
  return true;
}

bool same_leading_shape(const DlTensor& a, const DlTensor& b) {
  if (a.ndim != b.ndim) return false;
  for (int d = 0; d + 1 < a.ndim; ++d)
    if (a.shape[d] != b.shape[d]) return false;
  return true;
}

bool same_device(DlDevice a, DlDevice b) { return a.type == b.type && a.id == b.id; }

bool any_requires_grad(const Torch& torch, std::initializer_list<PyObject*> tensors) {
  for (PyObject* tensor : tensors)
    if (tensor != nullptr && tensor != Py_None && torch.requires_grad(tensor)) return true;
  return false;
}

double macs_of(const LinearArgs& args) {
  return static_cast<double>(args.x.rows) * static_cast<double>(args.y.cols) * static_cast<double>(args.x.cols);
}

}  // namespace

std::uint64_t generation() { return g_generation; }

bool resolve(PreparedLinear& self, PyObject* x, PyObject* out, PyObject* residual, PreparedCall& call,
             py::object* saved) {
  const Torch& torch = Torch::instance();
  DlTensor tx, ty, tr;
  LinearArgs& args = call.args;
  const std::int64_t n = self.weight->n(), k = self.weight->k();
  if (!torch.view(x, tx) || tx.dtype != self.x_type || !same_device(tx.device, self.device) || tx.ndim > kMaxDims ||
      !as_matrix(tx, k, args.x))
    return false;
  const std::int64_t m = args.x.rows;
  if (self.generation != g_generation || self.threads != threads() || self.version != torch.version(self.codes))
    return false;
  KernelInfo* kernel = self.kernels[residual != Py_None][static_cast<std::size_t>(m_bucket(m))];
  if (kernel == nullptr || (kernel->accepts && !kernel->accepts(m, n, k))) return false;

  args.weight = self.weight;
  args.epilogue = self.epilogue;
  if (residual != Py_None) {
    if (!torch.view(residual, tr) || !(tr.dtype == kDlF32 || tr.dtype == kDlBf16) ||
        !same_device(tr.device, self.device) || !same_leading_shape(tr, tx) ||
        !as_matrix(tr, n, args.epilogue.residual))
      return false;
  }

  py::object& y = call.y;
  if (out == Py_None) {
    std::array<std::int64_t, kMaxDims> shape;
    std::copy_n(tx.shape, tx.ndim - 1, shape.begin());
    shape[static_cast<std::size_t>(tx.ndim - 1)] = n;
    ty = {nullptr, self.device, tx.ndim, self.y_type, shape.data(), nullptr, 0};
    y = py::reinterpret_steal<py::object>(torch.allocate(ty));
    if (!y || torch.api->view(y.ptr(), &ty) != 0) throw py::error_already_set();
  } else {
    if (!torch.view(out, ty) || ty.dtype != self.y_type || !same_device(ty.device, self.device) ||
        !same_leading_shape(ty, tx))
      return false;
    y = py::reinterpret_borrow<py::object>(out);
  }
  if (saved != nullptr) {
    DlTensor tz = ty;
    tz.data = nullptr;
    *saved = py::reinterpret_steal<py::object>(torch.allocate(tz));
    if (!*saved || torch.api->view(saved->ptr(), &tz) != 0) throw py::error_already_set();
    args.epilogue.saved = {tz.address(), m, n, n, dtype_of(tz.dtype)};
  }
  if (!as_matrix(ty, n, args.y) || (m > 1 && args.y.row_stride < n)) return false;
  if (m == 0 || n == 0) return true;
  args.stream = torch.stream(self.device);
  call.kernel = kernel;
  return true;
}

PyObject* serve(PreparedLinear& self, PyObject* x, PyObject* out, PyObject* residual, py::object* saved) {
  PreparedCall call;
  if (!resolve(self, x, out, residual, call, saved)) return nullptr;
  if (call.kernel == nullptr) return call.y.release().ptr();
  const LinearArgs& args = call.args;
  ++call.kernel->calls;
  if (macs_of(args) < kReleaseLockMacs) {
    raise_if_failed(call.kernel->run.linear(args));
  } else {
    const auto keep = py::reinterpret_borrow<py::object>(self.weight_object);  // another thread may replace it
    run_released([&] { return call.kernel->run.linear(args); });
  }
  return call.y.release().ptr();
}

namespace {

PreparedLinear& self_of(PyObject* object) { return *reinterpret_cast<PreparedLinear*>(object); }

bool records_gradients(const Torch& torch, const PreparedLinear& self, std::initializer_list<PyObject*> arguments) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(self.trainable); ++i)
    if (torch.requires_grad(PyTuple_GET_ITEM(self.trainable, i))) return true;
  return any_requires_grad(torch, arguments);
}

// Plain tensors and no gradient to record, backward or forward.
bool is_plain_call(const PreparedLinear& self, PyObject* x, PyObject* out, PyObject* residual) {
  const Torch& torch = Torch::instance();
  return torch.is_plain(x) && (out == Py_None || torch.is_plain(out)) &&
         (residual == Py_None || torch.is_plain(residual)) && !torch.has_dual_level() &&
         !(torch.grad_enabled() && records_gradients(torch, self, {x, out, residual}));
}

PyObject* call(PyObject* object, PyObject* const* args, std::size_t flagged, PyObject* names) {
  PyObject* values[3] = {nullptr, Py_None, Py_None};  // x, out, residual
  const Py_ssize_t positional = PyVectorcall_NARGS(flagged);
  const Py_ssize_t named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  if (positional > 3) {
    PyErr_SetString(PyExc_TypeError, "a prepared linear takes x, out and residual");
    return nullptr;
  }
  for (Py_ssize_t i = 0; i < positional; ++i) values[i] = args[i];
  constexpr const char* kNames[] = {"x", "out", "residual"};
  for (Py_ssize_t i = 0; i < named; ++i) {
    int which = 0;
    while (which < 3 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, i), kNames[which]) != 0) ++which;
    if (which == 3 || which < positional) {
      PyErr_Format(PyExc_TypeError, "a prepared linear takes x, out and residual; found %R %s",
                   PyTuple_GET_ITEM(names, i), which == 3 ? "" : "twice");
      return nullptr;
    }
    values[which] = args[positional + i];
  }
  auto [x, out, residual] = values;
  if (x == nullptr) {
    PyErr_SetString(PyExc_TypeError, "x: missing; a prepared linear takes x, out and residual");
    return nullptr;
  }
  return guarded([&]() -> PyObject* {
    PreparedLinear& self = self_of(object);
    if (is_plain_call(self, x, out, residual))
      if (PyObject* y = serve(self, x, out, residual)) return y;
    if (self.slow == nullptr || self.slow == Py_None) Py_RETURN_NOTIMPLEMENTED;
    PyObject* arguments[] = {object, x, out, residual};
    return PyObject_Vectorcall(self.slow, arguments, 4, nullptr);
  });
}

// Whether `tensor` still is the [N] vector at `address`; None for nullptr.
bool is_vector(const Torch& torch, PyObject* tensor, const float* address, std::int64_t n) {
  if (address == nullptr || tensor == Py_None) return address == nullptr && tensor == Py_None;
  DlTensor t;
  return torch.view(tensor, t) && t.address() == address && t.ndim == 1 && t.shape[0] == n && t.dtype == kDlF32 &&
         t.strides[0] == 1;
}

bool same_word(PyObject* a, PyObject* b) {
  return a == b || (PyUnicode_Check(a) && PyUnicode_Check(b) && PyUnicode_Compare(a, b) == 0);
}

// serve(x, master, bias, norm, activation, residual, out_dtype, out, residual_before_norm): y, or NotImplemented unless
// this is the very layer that was prepared and no gradient is recorded.
PyObject* serve_arguments(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  if (count != 9) {
    PyErr_SetString(PyExc_TypeError, "serve: expected 9 arguments");
    return nullptr;
  }
  return guarded([&]() -> PyObject* {
    PreparedLinear& self = self_of(object);
    const Torch& torch = Torch::instance();
    PyObject *x = args[0], *bias = args[2], *residual = args[5], *out_dtype = args[6], *out = args[7];
    const Epilogue& e = self.epilogue;
    const std::int64_t n = self.weight->n();
    const bool same =
        torch.is_plain(x) && same_word(args[4], self.activation) && args[3] == self.norm &&
        (args[8] == Py_True) == e.residual_before_norm &&
        (out_dtype == Py_None ? out != Py_None || self.x_type == self.y_type : out_dtype == self.y_dtype) &&
        is_vector(torch, bias, e.bias, n) && is_vector(torch, self.norm_weight, e.norm_weight, n) &&
        is_vector(torch, self.norm_bias, e.norm_bias, n);
    if (same && (residual == Py_None || torch.is_plain(residual)) && (out == Py_None || torch.is_plain(out)) &&
        !torch.has_dual_level() &&
        !(torch.grad_enabled() &&
          any_requires_grad(torch, {x, args[1], bias, self.norm_weight, self.norm_bias, residual, out})))
      if (PyObject* y = serve(self, x, out, residual)) return y;
    Py_RETURN_NOTIMPLEMENTED;
  });
}

// record(x, residual): (y, what the norm saw), or NotImplemented.
PyObject* record(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "record: expected x and residual");
    return nullptr;
  }
  return guarded([&]() -> PyObject* {
    const Torch& torch = Torch::instance();
    py::object saved;
    if (torch.is_plain(args[0]) && (args[1] == Py_None || torch.is_plain(args[1])))
      if (PyObject* y = serve(self_of(object), args[0], Py_None, args[1], &saved))
        return py::make_tuple(py::reinterpret_steal<py::object>(y), saved).release().ptr();
    Py_RETURN_NOTIMPLEMENTED;
  });
}

PyTypeObject* g_type = nullptr;

py::object prepare(const py::object& weight, const py::object& codes, const Epilogue& epilogue,
                   bool residual_before_norm, const py::tuple& vectors, const py::tuple& trainable,
                   const py::object& norm, const py::object& activation, const py::object& x_dtype,
                   const py::object& y_dtype, bool x_is_f32, bool y_is_f32, const py::object& slow) {
  const Torch& torch = Torch::instance();
  if (torch.api == nullptr) throw py::value_error("prepare_linear: torch is not there yet; import octavo.ops");
  DlTensor view;
  if (!torch.view(codes.ptr(), view)) throw py::value_error("w: its codes have no memory to point to");
  PyObject* object = g_type->tp_alloc(g_type, 0);
  if (object == nullptr) throw py::error_already_set();
  PreparedLinear& self = self_of(object);
  const auto own = [](py::object value) { return value.release().ptr(); };
  self.vectorcall = call;
  self.weight = &weight.cast<const PackedWeight&>();
  self.epilogue = epilogue;
  self.epilogue.residual_before_norm = residual_before_norm;
  self.device = view.device;
  self.x_type = x_is_f32 ? kDlF32 : kDlBf16;
  self.y_type = y_is_f32 ? kDlF32 : kDlBf16;
  self.version = torch.version(codes.ptr());
  self.generation = g_generation;
  self.threads = threads();
  self.weight_object = own(weight);
  self.codes = own(codes);
  self.vectors = own(vectors);
  self.trainable = own(trainable);
  self.norm = own(norm);
  self.norm_weight = own(norm.is_none() ? py::none() : norm.attr("weight").cast<py::object>());
  self.norm_bias = own(norm.is_none() ? py::none() : norm.attr("bias").cast<py::object>());
  self.activation = own(activation);
  self.x_dtype = own(x_dtype);
  self.y_dtype = own(y_dtype);
  self.slow = own(slow);
  return py::reinterpret_steal<py::object>(object);
}

template <class Visit>
int for_each_owned(PreparedLinear& self, Visit&& visit) {
  for (PyObject** owned :
       {&self.weight_object, &self.codes, &self.vectors, &self.trainable, &self.norm, &self.norm_weight,
        &self.norm_bias, &self.activation, &self.x_dtype, &self.y_dtype, &self.slow})
    if (const int result = visit(*owned)) return result;
  return 0;
}

int traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  return for_each_owned(self_of(object), [&](PyObject* owned) { return owned == nullptr ? 0 : visit(owned, arg); });
}

// Only the slow path can close a cycle; what calls in flight read stays.
int clear(PyObject* object) {
  Py_CLEAR(self_of(object).slow);
  return 0;
}

void dealloc(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  PyObject_GC_UnTrack(object);
  for_each_owned(self_of(object), [](PyObject*& owned) {
    Py_CLEAR(owned);
    return 0;
  });
  type->tp_free(object);
  Py_DECREF(type);
}

PreparedLinear& checked(const py::object& object) {
  if (Py_TYPE(object.ptr()) != g_type) throw py::type_error("expected a PreparedLinear");
  return self_of(object.ptr());
}

// From now on `weight`; kernels are chosen anew in a new generation of them, and for another number of threads.
void refresh(const py::object& object, const py::object& weight) {
  PreparedLinear& self = checked(object);
  self.weight = &weight.cast<const PackedWeight&>();
  Py_SETREF(self.weight_object, py::object(weight).release().ptr());
  self.version = Torch::instance().version(self.codes);
  const int now = threads();
  if (self.generation == g_generation && self.threads == now) return;
  self.generation = g_generation;
  self.threads = now;
  for (auto& row : self.kernels) row.fill(nullptr);
}

void set_kernel(const py::object& object, std::int64_t m, bool with_residual, KernelInfo& kernel) {
  if (kernel.run.linear == nullptr) throw py::value_error("kernel: " + kernel.name + " cannot be called from C");
  checked(object).kernels[with_residual][static_cast<std::size_t>(m_bucket(m))] = &kernel;
}

// (largest M of the bucket, with residual) -> kernel, of the buckets met so far.
py::dict chosen(const py::object& object) {
  py::dict found;
  const PreparedLinear& self = checked(object);
  for (int with = 0; with < 2; ++with)
    for (int bucket = 0; bucket < kRowBuckets; ++bucket)
      if (const KernelInfo* kernel = self.kernels[static_cast<std::size_t>(with)][static_cast<std::size_t>(bucket)])
        found[py::make_tuple(bucket == 0 ? 0 : std::int64_t{1} << (bucket - 1), with == 1)] = kernel->name;
  return found;
}

PyMethodDef g_methods[] = {
    {"serve", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(serve_arguments)), METH_FASTCALL,
     "octavo.ops.linear's arguments: y, or NotImplemented unless this is the layer that was prepared."},
    {"record", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(record)), METH_FASTCALL,
     "(y, what the norm saw) for x and residual, or NotImplemented."},
    {nullptr, nullptr, 0, nullptr}};

PyMemberDef g_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(PreparedLinear, vectorcall), READONLY, nullptr},
    {"weight", T_OBJECT, offsetof(PreparedLinear, weight_object), READONLY, "The core's PackedWeight."},
    {"y_dtype", T_OBJECT, offsetof(PreparedLinear, y_dtype), READONLY, "What a call returns."},
    {nullptr, 0, 0, 0, nullptr}};

PyTypeObject* make_type() {
  static PyType_Slot slots[] = {{Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
                                {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                                {Py_tp_clear, reinterpret_cast<void*>(clear)},
                                {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
                                {Py_tp_methods, g_methods},
                                {Py_tp_members, g_members},
                                {0, nullptr}};
  static PyType_Spec spec = {"octavo._core.PreparedLinear", sizeof(PreparedLinear), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
                                 Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
                             slots};
  PyObject* type = PyType_FromSpec(&spec);
  if (type == nullptr) throw py::error_already_set();
  return reinterpret_cast<PyTypeObject*>(type);
}

}  // namespace

py::list serve_group(const py::tuple& layers, const py::sequence& xs, const py::object& outs) {
  const std::size_t count = layers.size();
  if (xs.size() != count || (!outs.is_none() && py::len(outs) != count))
    throw py::value_error("serve_group: expected one x and one out per layer");
  std::vector<GroupedLinear> group;
  std::vector<py::object> keep;  // weights: another thread may replace them
  py::list found;
  double macs = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const py::object layer = layers[i], x = xs[i];
    const py::object out = outs.is_none() ? py::none() : py::object(outs[py::int_(i)]);
    PreparedCall call;
    if (layer.is_none() || !is_plain_call(checked(layer), x.ptr(), out.ptr(), Py_None) ||
        !resolve(checked(layer), x.ptr(), out.ptr(), Py_None, call)) {
      found.append(py::reinterpret_borrow<py::object>(Py_NotImplemented));
      continue;
    }
    found.append(call.y);
    if (call.kernel == nullptr) continue;
    ++call.kernel->calls;
    macs += macs_of(call.args);
    keep.push_back(py::reinterpret_borrow<py::object>(checked(layer).weight_object));
    keep.push_back(x);
    group.push_back({call.kernel, call.args});
  }
  const auto work = [&] { return run_grouped(group.data(), group.size()); };
  if (macs < kReleaseLockMacs) {
    raise_if_failed(work());
  } else {
    run_released(work);
  }
  return found;
}

void bind_prepared_linear(py::module_& m) {
  g_type = make_type();
  m.attr("PreparedLinear") = py::handle(reinterpret_cast<PyObject*>(g_type));
  m.def("prepare_linear", &prepare, py::arg("weight"), py::arg("codes"), py::arg("epilogue"),
        py::arg("residual_before_norm"), py::arg("vectors"), py::arg("trainable"), py::arg("norm"),
        py::arg("activation"), py::arg("x_dtype"), py::arg("y_dtype"), py::arg("x_is_f32"), py::arg("y_is_f32"),
        py::arg("slow"));
  m.def("refresh_prepared", &refresh, py::arg("prepared"), py::arg("weight"));
  m.def("set_prepared_kernel", &set_kernel, py::arg("prepared"), py::arg("m"), py::arg("with_residual"),
        py::arg("kernel"));
  m.def("prepared_kernels", &chosen, py::arg("prepared"));
  m.def("serve_group", &serve_group, py::arg("layers"), py::arg("xs"), py::arg("outs") = py::none());
  m.def("new_generation", [] { return ++g_generation; });
}

}  // namespace octavo::bindings
