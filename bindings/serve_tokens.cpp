// `pairwise_dots` and `add_norm` over tokens [B, n, D] from torch tensors to torch tensors without Python in between: a
// ranker makes dozens of such calls for a batch, small ones in a few microseconds each.
#include <string_view>
#include <vector>

#include "module.hpp"
#include "octavo/add_norm.hpp"
#include "octavo/pairwise.hpp"
#include "octavo/registry.hpp"
#include "prepared_linear.hpp"
#include "torch_tensors.hpp"

namespace octavo::bindings {

namespace {

// Below this many multiply-adds, or numbers that a norm passes, a call is over before another thread could take the
// interpreter lock.
constexpr std::int64_t kReleaseLockWork = 1 << 16;
constexpr DlDevice kCpu{kDlCpu, 0};

// A kernel that octavo.ops chose, until kernels are chosen anew.
struct Chosen {
  KernelInfo* kernel = nullptr;
  std::uint64_t generation = 0;

  KernelInfo* current() const { return generation == bindings::generation() ? kernel : nullptr; }
};
Chosen g_pairwise_fp32, g_pairwise_bf16, g_add_norm;
PyObject* g_norm_type = nullptr;  // octavo.ops.Norm

// What a call reads of torch's state once.
struct Call {
  const Torch& torch = Torch::instance();
  bool records = torch.grad_enabled();

  // A plain CPU tensor [B, n, D] of FP32 or BF16, none of them 0, whose rows or columns are neighbours and which
  // records no gradient.
  bool tokens(PyObject* object, BatchView& out, std::int64_t& batch) const {
    DlTensor t;
    if (!torch.view(object, t) || t.device.type != kDlCpu || (t.dtype != kDlF32 && t.dtype != kDlBf16) || t.ndim != 3 ||
        t.shape[0] < 1 || t.shape[1] < 1 || t.shape[2] < 1 || (records && torch.requires_grad(object)) ||
        torch.is_negated(object) || t.address() == nullptr)
      return false;
    const bool rows_lie_along = t.shape[2] > 1 && t.strides[2] == 1, columns = t.shape[1] > 1 && t.strides[1] == 1;
    if (!rows_lie_along && !columns) return false;
    batch = t.shape[0];
    out = {t.address(),      t.shape[1], t.shape[2], t.strides[0], t.strides[1], t.shape[2] > 1 ? t.strides[2] : 1,
           dtype_of(t.dtype)};
    return true;
  }

  // A norm's vector [depth] of FP32, or None.
  bool vector(PyObject* object, std::int64_t depth, const float*& out) const {
    out = nullptr;
    if (object == Py_None) return true;
    DlTensor t;
    if (!torch.view(object, t) || t.device.type != kDlCpu || t.dtype != kDlF32 || t.ndim != 1 || t.shape[0] != depth ||
        depth < 2 || t.strides[0] != 1 || (records && torch.requires_grad(object)) || torch.is_negated(object) ||
        t.address() == nullptr)
      return false;
    out = static_cast<const float*>(t.address());
    return true;
  }

  py::object output(const std::vector<std::int64_t>& shape, DType type, void*& memory) const {
    auto made =
        py::reinterpret_steal<py::object>(torch.allocate_output(shape, type == DType::f32 ? kDlF32 : kDlBf16, kCpu));
    DlTensor t;
    if (!made || torch.api->view(made.ptr(), &t) != 0) throw py::error_already_set();
    memory = t.address();
    return made;
  }
};

template <class Work>
void run(std::int64_t size, Work&& work) {
  if (size < kReleaseLockWork)
    raise_if_failed(work());
  else
    run_released(work);
}

bool as_pairs(PyObject* name, Pairs& out) {
  Py_ssize_t size = 0;
  const char* text = PyUnicode_Check(name) ? PyUnicode_AsUTF8AndSize(name, &size) : nullptr;
  if (text == nullptr) return PyErr_Clear(), false;
  const std::string_view pairs(text, static_cast<std::size_t>(size));
  out = pairs == "lower" ? Pairs::lower : pairs == "upper" ? Pairs::upper : Pairs::all;
  return out != Pairs::all || pairs == "all";
}

py::object pairwise(PyObject* x, PyObject* y, PyObject* pairs) {
  const Call call;
  PairwiseArgs args;
  std::int64_t batch_of_y = 0;
  if (call.torch.has_dual_level() || !as_pairs(pairs, args.pairs) || !call.tokens(x, args.x, args.batch)) return {};
  KernelInfo* kernel = (args.x.dtype == DType::f32 ? g_pairwise_fp32 : g_pairwise_bf16).current();
  if (kernel == nullptr) return {};
  args.y = args.x;
  const std::int64_t left = args.x.rows;
  if (y != Py_None && (args.pairs != Pairs::all || !call.tokens(y, args.y, batch_of_y) || batch_of_y != args.batch ||
                       args.y.cols != args.x.cols))
    return {};
  const bool whole = args.pairs == Pairs::all;
  const std::int64_t width = whole ? args.y.rows : left * (left - 1) / 2;
  if (width < 1) return {};
  args.out_dtype = args.x.dtype;
  args.out_batch_stride = whole ? left * width : width;
  args.out_row_stride = whole ? width : 0;
  py::object out = whole ? call.output({args.batch, left, width}, args.out_dtype, args.out)
                         : call.output({args.batch, width}, args.out_dtype, args.out);
  ++kernel->calls;
  run(args.batch * left * args.y.rows * args.x.cols, [&] { return kernel->run.pairwise_dots(args); });
  return out;
}

// The norm of octavo.ops, of a kind whose options are its vectors and eps.
bool as_norm(const Call& call, PyObject* norm, std::int64_t depth, AddNormArgs& args) {
  if (norm == Py_None) return true;
  if (reinterpret_cast<PyObject*>(Py_TYPE(norm)) != g_norm_type) return false;
  const py::handle handle(norm);
  const py::object eps = handle.attr("eps"), name = handle.attr("kind");
  if (!PyFloat_Check(eps.ptr()) || !PyUnicode_Check(name.ptr())) return false;
  const auto kind = name.cast<std::string_view>();
  args.norm = kind == "layer" ? NormKind::layer : kind == "rms" ? NormKind::rms : NormKind::none;
  args.eps = static_cast<float>(PyFloat_AS_DOUBLE(eps.ptr()));
  return args.norm != NormKind::none && call.vector(handle.attr("weight").ptr(), depth, args.weight) &&
         call.vector(handle.attr("bias").ptr(), depth, args.bias);
}

py::object add_norm(PyObject* parts, PyObject* residual, PyObject* norm, PyObject* transposed) {
  const Call call;
  KernelInfo* kernel = g_add_norm.current();
  if (kernel == nullptr || call.torch.has_dual_level() || !(PyList_Check(parts) || PyTuple_Check(parts)) ||
      !(transposed == Py_True || transposed == Py_False))
    return {};
  const auto held = py::reinterpret_steal<py::object>(PySequence_Tuple(parts));  // a list may change without the lock
  if (!held) throw py::error_already_set();
  std::vector<BatchView> views(static_cast<std::size_t>(PyTuple_GET_SIZE(held.ptr())));
  AddNormArgs args;
  for (std::size_t i = 0; i < views.size(); ++i) {
    std::int64_t batch = 0;
    if (!call.tokens(PyTuple_GET_ITEM(held.ptr(), static_cast<Py_ssize_t>(i)), views[i], batch)) return {};
    if (i == 0) args.batch = batch;
    if (batch != args.batch || views[i].cols != views[0].cols || views[i].dtype != views[0].dtype) return {};
  }
  if (views.empty()) return {};
  args.parts = views.data();
  args.part_count = static_cast<int>(views.size());
  const std::int64_t tokens = args.tokens(), depth = views[0].cols;
  if (residual != Py_None) {
    std::int64_t batch = 0;
    if (!call.tokens(residual, args.residual, batch) || batch != args.batch || args.residual.rows != tokens ||
        args.residual.cols != depth || args.residual.dtype != views[0].dtype)
      return {};
  }
  if (!as_norm(call, norm, depth, args)) return {};
  py::object y = call.output({args.batch, tokens, depth}, views[0].dtype, args.out), across;
  if (transposed == Py_True) across = call.output({args.batch, depth, tokens}, views[0].dtype, args.out_transposed);
  ++kernel->calls;
  run(args.batch * tokens * depth, [&] { return kernel->run.add_norm(args); });
  return across ? py::make_tuple(std::move(y), std::move(across)) : std::move(y);
}

bool has_arguments(const char* name, Py_ssize_t count, Py_ssize_t expected) {
  if (count == expected) return true;
  PyErr_Format(PyExc_TypeError, "%s: expected %zd arguments", name, expected);
  return false;
}

PyObject* or_not_implemented(py::object found) {
  if (!found) Py_RETURN_NOTIMPLEMENTED;
  return found.release().ptr();
}

// serve_pairwise_dots(x, y, pairs)
PyObject* serve_pairwise_dots(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (!has_arguments("serve_pairwise_dots", count, 3)) return nullptr;
  return guarded([&] { return or_not_implemented(pairwise(args[0], args[1], args[2])); });
}

// serve_add_norm(parts, residual, norm, transposed)
PyObject* serve_add_norm(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (!has_arguments("serve_add_norm", count, 4)) return nullptr;
  return guarded([&] { return or_not_implemented(add_norm(args[0], args[1], args[2], args[3])); });
}

template <class Function>
PyCFunction as_c_function(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef g_serve_pairwise_dots = {"serve_pairwise_dots", as_c_function(serve_pairwise_dots), METH_FASTCALL,
                                     "The products, or NotImplemented where octavo.ops has to look closer."};
PyMethodDef g_serve_add_norm = {"serve_add_norm", as_c_function(serve_add_norm), METH_FASTCALL,
                                "y or (y, y^T), or NotImplemented where octavo.ops has to look closer."};

}  // namespace

void bind_serve_tokens(py::module_& m) {
  m.attr("serve_pairwise_dots") = py::reinterpret_steal<py::object>(PyCFunction_New(&g_serve_pairwise_dots, nullptr));
  m.attr("serve_add_norm") = py::reinterpret_steal<py::object>(PyCFunction_New(&g_serve_add_norm, nullptr));
  m.def(
      "serve_pairwise_dots_with",
      [](KernelInfo& kernel, std::uint64_t generation, bool is_bf16) {
        (is_bf16 ? g_pairwise_bf16 : g_pairwise_fp32) = {&kernel, generation};
      },
      py::arg("kernel"), py::arg("generation"), py::arg("is_bf16"));
  m.def(
      "serve_add_norm_with",
      [](KernelInfo& kernel, std::uint64_t generation, const py::type& norm) {
        g_add_norm = {&kernel, generation};
        g_norm_type = norm.ptr();  // lives as long as octavo.ops
      },
      py::arg("kernel"), py::arg("generation"), py::arg("norm"));
}

}  // namespace octavo::bindings
