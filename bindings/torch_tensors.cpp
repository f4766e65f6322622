#include "torch_tensors.hpp"

#include "module.hpp"

namespace octavo::bindings {

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

PyObject* Torch::allocate(DlTensor& prototype) const {
  DlManagedTensor* managed = nullptr;
  const auto set_error = [](void*, const char*, const char* message) { PyErr_SetString(PyExc_RuntimeError, message); };
  if (api->allocate(&prototype, &managed, nullptr, set_error) != 0) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "linear: torch could not allocate the output");
    return nullptr;
  }
  void* object = nullptr;
  return api->to_object(managed, &object) == 0 ? static_cast<PyObject*>(object) : nullptr;
}

bool Torch::grad_enabled() const {
  PyObject* enabled = PyObject_CallNoArgs(is_grad_enabled);
  if (enabled == nullptr) throw py::error_already_set();
  Py_DECREF(enabled);
  return enabled == Py_True;
}

bool Torch::requires_grad(PyObject* tensor) const {
  PyObject* value = PyObject_GetAttr(tensor, requires_grad_name);
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

void bind_torch_tensors(py::module_& m) {
  m.def(
      "use_torch",
      [](const py::capsule& api, const py::object& tensor, const py::object& parameter,
         const py::object& is_grad_enabled) {
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
                 PyUnicode_InternFromString("requires_grad"),
                 PyUnicode_InternFromString("_version")};
      },
      py::arg("api"), py::arg("tensor"), py::arg("parameter"), py::arg("is_grad_enabled"));
}

}  // namespace octavo::bindings
