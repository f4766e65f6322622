// One function per bindings/*.cpp; each fills octavo._core with what its header offers.
//
// Nothing here links torch: Python passes addresses (tensor.data_ptr()), shapes and strides as integers, already
// checked; prepared calls read tensors through DLPack's C table (torch_tensors.hpp).
#pragma once

#include <pybind11/pybind11.h>

#include <new>

#include "octavo/types.hpp"

namespace octavo::bindings {

namespace py = pybind11;

void bind_isa(py::module_& m);
void bind_registry(py::module_& m);
void bind_dispatch(py::module_& m);
void bind_quantize(py::module_& m);
void bind_linear(py::module_& m);
void bind_linear_backward(py::module_& m);
void bind_torch_tensors(py::module_& m);
void bind_prepared_linear(py::module_& m);
void bind_cuda(py::module_& m);
void bind_gemm_tiles(py::module_& m);
void bind_embedding(py::module_& m);
void bind_id_map(py::module_& m);
void bind_pairwise(py::module_& m);
void bind_add_norm(py::module_& m);
void bind_serve_tokens(py::module_& m);
void bind_statistics(py::module_& m);

// Runs Python-visible work without the interpreter lock and turns a Status into the exception of its code.
void raise_if_failed(const Status& status);

template <class Work>
void run_released(Work&& work) {
  Status status;
  {
    const py::gil_scoped_release release;
    status = work();
  }
  raise_if_failed(status);
}

// C++ exceptions become Python's; nullptr.
template <class Body>
PyObject* guarded(Body&& body) {
  try {
    return body();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// Raises ValueError where a tensor of `elements` lies nowhere: fake tensors have an address of 0.
void raise_no_memory(const char* argument);

inline void expect_memory(const char* argument, std::uintptr_t data, std::int64_t elements) {
  if (data == 0 && elements > 0) raise_no_memory(argument);
}

inline MatrixView matrix(std::uintptr_t data, std::int64_t rows, std::int64_t cols, std::int64_t row_stride,
                         DType dtype) {
  return {reinterpret_cast<void*>(data), rows, cols, row_stride, dtype};
}

}  // namespace octavo::bindings
