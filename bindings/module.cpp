#include "module.hpp"

#include <pybind11/native_enum.h>

#include <cstdlib>
#include <string>

#include "octavo/isa.hpp"
#include "torch_tensors.hpp"

namespace octavo::bindings {

void raise_if_failed(const Status& status) {
  switch (status.code()) {
    case Code::ok: return;
    case Code::invalid_argument: throw py::value_error(status.message());
    case Code::out_of_range: throw py::index_error(status.message());
    case Code::unsupported: PyErr_SetString(PyExc_NotImplementedError, status.message().c_str()); break;
    case Code::out_of_memory: {
      PyObject* torchs = Torch::instance().out_of_memory;
      PyErr_SetString(torchs != nullptr ? torchs : PyExc_MemoryError, status.message().c_str());
      break;
    }
    case Code::internal: PyErr_SetString(PyExc_RuntimeError, status.message().c_str()); break;
  }
  throw py::error_already_set();
}

void raise_no_memory(const char* argument) {
  throw py::value_error(std::string(argument) +
                        ": has no memory (a FakeTensor?); octavo computes with real tensors, and with fake ones only "
                        "inside torch.compile and torch.export");
}

}  // namespace octavo::bindings

PYBIND11_MODULE(_core, m) {
  using namespace octavo::bindings;
  m.doc() = "octavo's compiled engine. Private: use octavo.ops and octavo.nn.";
  if (const char* forced = std::getenv("OCTAVO_ISA"); forced != nullptr && *forced != '\0') {
    octavo::Isa isa;
    if (!octavo::isa_from_string(forced, isa))
      throw pybind11::import_error("OCTAVO_ISA: found '" + std::string(forced) +
                                   "'; expected baseline, avx2, avx512 or amx, or leave it unset");
  }
  pybind11::native_enum<octavo::DType>(m, "DType", "enum.IntEnum")
      .value("f32", octavo::DType::f32)
      .value("bf16", octavo::DType::bf16)
      .value("f16", octavo::DType::f16)
      .value("e4m3", octavo::DType::e4m3)
      .value("e5m2", octavo::DType::e5m2)
      .value("i8", octavo::DType::i8)
      .value("u8", octavo::DType::u8)
      .value("i32", octavo::DType::i32)
      .value("i64", octavo::DType::i64)
      .value("u4", octavo::DType::u4)
      .finalize();
  m.def("expect_memory", &expect_memory);
  bind_isa(m);
  bind_registry(m);
  bind_dispatch(m);
  bind_quantize(m);
  bind_linear(m);
  bind_linear_backward(m);
  bind_torch_tensors(m);
  bind_prepared_linear(m);
  bind_cuda(m);
  bind_gemm_tiles(m);
  bind_embedding(m);
  bind_id_map(m);
  bind_pairwise(m);
  bind_add_norm(m);
  bind_serve_tokens(m);
  bind_statistics(m);
}
