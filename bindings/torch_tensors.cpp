#include "torch_tensors.hpp"

#include <pybind11/stl.h>

#include <string>
#include <string_view>
#include <utility>

#include "module.hpp"
#include "octavo/memory.hpp"

#ifdef OCTAVO_WITH_CUDA
#include "device/device.hpp"
#endif

namespace octavo::bindings {

namespace {

// Whether torch's allocator says that there is no more, or reports that an earlier kernel failed.
bool is_out_of_memory(std::string_view message) { return message.find("allocate") != std::string_view::npos; }

constexpr std::int64_t kReuseFrom = 1 << 20, kReuseTo = 64 << 20;  // bytes

// A tensor's memory that AlignedBuffer keeps for the next one of its size.
struct Reused {
  AlignedBuffer buffer;
  std::vector<std::int64_t> shape, strides;
  DlManagedTensor managed;
};

}  // namespace

Torch& Torch::instance() {
  static auto* torch = new Torch;  // never destroyed: the interpreter may be gone before statics are
  return *torch;
}

bool Torch::view(PyObject* object, DlTensor& out) const {
  if (!is_plain(object)) return false;
  if (api->view(object, &out) == 0) return true;
  PyErr_Clear();
  return false;
}

void* Torch::address(PyObject* tensor) const {
  DlTensor t;
  if (view(tensor, t)) return t.address();
  const auto number = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, data_ptr_name));
  if (!number) throw py::error_already_set();
  return PyLong_AsVoidPtr(number.ptr());
}

PyObject* Torch::allocate(DlTensor& prototype) const {
  DlManagedTensor* managed = nullptr;
  const auto set_error = [](void* context, const char*, const char* message) {
    const auto& torch = *static_cast<const Torch*>(context);
    PyErr_SetString(
        is_out_of_memory(message) && torch.out_of_memory != nullptr ? torch.out_of_memory : PyExc_RuntimeError,
        message);
  };
  if (api->allocate(&prototype, &managed, const_cast<Torch*>(this), set_error) != 0) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "torch could not allocate an output");
    return nullptr;
  }
  std::int64_t numbers = 1;
  for (std::int32_t d = 0; d < prototype.ndim; ++d) numbers *= prototype.shape[d];
  if (managed->tensor.data == nullptr && numbers > 0) {
    managed->deleter(managed);
    raise_no_memory("out");  // a FakeTensorMode is active
  }
  void* object = nullptr;
  return api->to_object(managed, &object) == 0 ? static_cast<PyObject*>(object) : nullptr;
}

PyObject* Torch::allocate_output(const std::vector<std::int64_t>& shape, DlType type, DlDevice device) const {
  std::vector<std::int64_t> sizes = shape, strides(shape.size());
  const auto ndim = static_cast<std::int32_t>(shape.size());
  std::int64_t numbers = 1;
  for (std::size_t d = shape.size(); d-- > 0; numbers *= shape[d]) strides[d] = numbers;
  const std::int64_t bytes = numbers * type.bits / 8;
  if (type != kDlF32 || device.type != kDlCpu || bytes < kReuseFrom || bytes > kReuseTo) {
    DlTensor prototype{nullptr, device, ndim, type, sizes.data(), nullptr, 0};
    return allocate(prototype);
  }
  auto* reused = new Reused{AlignedBuffer(static_cast<std::size_t>(bytes)), std::move(sizes), std::move(strides), {}};
  reused->managed = {
      api->major, api->minor,
      reused,     [](DlManagedTensor* self) { delete static_cast<Reused*>(self->manager); },
      0,          {reused->buffer.data(), device, ndim, type, reused->shape.data(), reused->strides.data(), 0}};
  void* object = nullptr;
  return api->to_object(&reused->managed, &object) == 0 ? static_cast<PyObject*>(object) : nullptr;
}

Status Torch::allocate_bytes(std::size_t bytes, DlDevice device, void*& memory, void*& owner) const {
  auto size = static_cast<std::int64_t>(bytes);
  DlTensor prototype{nullptr, device, 1, kDlU8, &size, nullptr, 0};
  DlManagedTensor* managed = nullptr;
  std::string problem;
  const auto keep = [](void* context, const char*, const char* message) {
    *static_cast<std::string*>(context) = message;
  };
  if (api->allocate(&prototype, &managed, &problem, keep) != 0) {
    return {is_out_of_memory(problem) ? Code::out_of_memory : Code::internal, std::move(problem)};
  }
  memory = managed->tensor.address();
  owner = managed;
  return {};
}

void Torch::release_bytes(void* owner) {
  auto* managed = static_cast<DlManagedTensor*>(owner);
  managed->deleter(managed);
}

bool Torch::grad_enabled() const {
  PyObject* enabled = PyObject_CallNoArgs(is_grad_enabled);
  if (enabled == nullptr) throw py::error_already_set();
  Py_DECREF(enabled);
  return enabled == Py_True;
}

bool Torch::has_dual_level() const {
  PyObject* level = PyDict_GetItemWithError(forward_ad, level_name);
  return level != nullptr && PyLong_Check(level) && PyLong_AsLong(level) >= 0;
}

bool Torch::requires_grad(PyObject* tensor) const {
  PyObject* value = PyObject_GetAttr(tensor, requires_grad_name);
  if (value == nullptr) throw py::error_already_set();
  Py_DECREF(value);
  return value == Py_True;
}

bool Torch::is_negated(PyObject* tensor) const {
  PyObject* value = PyObject_CallMethodNoArgs(tensor, is_neg_name);
  if (value == nullptr) throw py::error_already_set();
  Py_DECREF(value);
  return value == Py_True;
}

std::int64_t Torch::version(PyObject* tensor) const {
  PyObject* value = PyObject_GetAttr(tensor, version_name);
  if (value == nullptr) {
    PyErr_Clear();
    return -1;
  }
  const std::int64_t version = PyLong_AsLongLong(value);
  Py_DECREF(value);
  return version;
}

void* Torch::stream(DlDevice device) const {
  void* stream = nullptr;
  if (device.type == kDlCuda && api->current_stream(device.type, device.id, &stream) != 0)
    throw py::error_already_set();
  return stream;
}

#ifdef OCTAVO_WITH_CUDA
namespace {

// torch orders its memory on the current stream of the thread; it has none for another.
Status scratch_of_torch(std::size_t bytes, int device, cudaStream_t stream, void*& memory, void*& owner) {
  const Torch& torch = Torch::instance();
  void* current = nullptr;
  if (torch.api->current_stream(kDlCuda, device, &current) != 0 || current != stream) return {};
  return torch.allocate_bytes(bytes, {kDlCuda, device}, memory, owner);
}

}  // namespace
#endif

void bind_torch_tensors(py::module_& m) {
  m.def(
      "use_torch",
      [](const py::capsule& api, const py::object& tensor, const py::object& parameter,
         const py::object& is_grad_enabled, const py::object& out_of_memory, const py::dict& forward_ad) {
        Torch& torch = Torch::instance();
        const auto* table = static_cast<const DlExchangeApi*>(PyCapsule_GetPointer(api.ptr(), "dlpack_exchange_api"));
        if (table == nullptr) throw py::error_already_set();
        if (table->major != 1 || table->view == nullptr)
          throw py::import_error("octavo: torch's DLPack exchange API has version " + std::to_string(table->major) +
                                 "; octavo reads version 1, install torch >= 2.11");
        torch = {table,
                 reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr()),
                 reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr()),
                 is_grad_enabled.inc_ref().ptr(),
                 out_of_memory.inc_ref().ptr(),
                 forward_ad.inc_ref().ptr(),
                 PyUnicode_InternFromString("_current_level"),
                 PyUnicode_InternFromString("data_ptr"),
                 PyUnicode_InternFromString("requires_grad"),
                 PyUnicode_InternFromString("_version"),
                 PyUnicode_InternFromString("is_neg")};
#ifdef OCTAVO_WITH_CUDA
        cuda::use_scratch_source({scratch_of_torch, Torch::release_bytes});
#endif
      },
      py::arg("api"), py::arg("tensor"), py::arg("parameter"), py::arg("is_grad_enabled"), py::arg("out_of_memory"),
      py::arg("forward_ad"));
  m.def(
      "empty_output",
      [](const std::vector<std::int64_t>& shape, bool is_bf16) {
        PyObject* made = Torch::instance().allocate_output(shape, is_bf16 ? kDlBf16 : kDlF32, {kDlCpu, 0});
        if (made == nullptr) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(made);
      },
      py::arg("shape"), py::arg("is_bf16") = false);
  // What the kernels' scratch memory comes from, asked for on the CPU: bytes that can be written, given back at once.
  m.def("try_scratch", [](std::size_t bytes) {
    run_released([&] {
      void *memory = nullptr, *owner = nullptr;
      if (Status s = Torch::instance().allocate_bytes(bytes, {kDlCpu, 0}, memory, owner); !s.ok()) return s;
      if (bytes > 0) static_cast<char*>(memory)[bytes - 1] = 1;
      Torch::release_bytes(owner);
      return Status{};
    });
  });
}

}  // namespace octavo::bindings
