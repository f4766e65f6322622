// Reading and making torch tensors in C without linking torch: the DLPack C exchange API (dlpack.h 1.3), a table of
// functions that every torch since 2.11 offers as torch.Tensor.__dlpack_c_exchange_api__. About 50 ns per tensor.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "octavo/types.hpp"

namespace octavo::bindings {

namespace py = pybind11;

// Layouts fixed by DLPack 1.x.
struct DlDevice {
  std::int32_t type;
  std::int32_t id;
};
struct DlType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
  bool operator==(const DlType&) const = default;
};
struct DlTensor {
  void* data;
  DlDevice device;
  std::int32_t ndim;
  DlType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // elements
  std::uint64_t byte_offset;

  void* address() const { return static_cast<char*>(data) + byte_offset; }
};
struct DlManagedTensor {
  std::uint32_t major, minor;
  void* manager;
  void (*deleter)(DlManagedTensor* self);
  std::uint64_t flags;
  DlTensor tensor;
};
struct DlExchangeApi {
  std::uint32_t major, minor;
  DlExchangeApi* previous;
  int (*allocate)(DlTensor* prototype, DlManagedTensor** out, void* context,
                  void (*set_error)(void* context, const char* kind, const char* message));
  int (*share)(void* object, DlManagedTensor** out);
  int (*to_object)(DlManagedTensor* tensor, void** object);
  int (*view)(void* object, DlTensor* out);
  int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** stream);
};
constexpr std::int32_t kDlCpu = 1, kDlCuda = 2;
constexpr DlType kDlF32{2, 32, 1}, kDlBf16{4, 16, 1}, kDlI64{0, 64, 1}, kDlU8{1, 8, 1};

// What octavo.ops hands over once, with _core.use_torch: see bind_prepared_linear.
struct Torch {
  const DlExchangeApi* api = nullptr;
  PyTypeObject* tensor = nullptr;
  PyTypeObject* parameter = nullptr;
  PyObject* is_grad_enabled = nullptr;
  PyObject* out_of_memory = nullptr;  // torch.OutOfMemoryError
  PyObject* forward_ad = nullptr;     // the names of torch.autograd.forward_ad
  PyObject* level_name = nullptr;
  PyObject* data_ptr_name = nullptr;
  PyObject* requires_grad_name = nullptr;
  PyObject* version_name = nullptr;
  PyObject* is_neg_name = nullptr;

  static Torch& instance();

  // torch.Tensor and torch.nn.Parameter themselves: subclasses (fake tensors among them) have their own rules.
  bool is_plain(PyObject* object) const { return Py_TYPE(object) == tensor || Py_TYPE(object) == parameter; }

  // False when `object` has no memory to point to (functorch's wrappers, sparse, meta); no exception is left set.
  bool view(PyObject* object, DlTensor& out) const;

  // Where the tensor's numbers lie, plain or not; throws the tensor's own error where it cannot say.
  void* address(PyObject* tensor) const;

  // A new tensor, or nullptr with a Python exception.
  PyObject* allocate(DlTensor& prototype) const;

  // A new contiguous tensor; a CPU's FP32 one from 1 to 64 MiB on memory that was used before: it starts on a cache
  // line and does not resize. Fresh pages cost more than the lookups of short bags do: 2 MiB from an allocator that
  // maps and unmaps take 500 page faults a call.
  PyObject* allocate_output(const std::vector<std::int64_t>& shape, DlType type, DlDevice device) const;

  // `bytes` of torch's allocator, which on a CUDA device belong to its current stream; needs no interpreter lock, nor
  // does giving them back.
  Status allocate_bytes(std::size_t bytes, DlDevice device, void*& memory, void*& owner) const;
  static void release_bytes(void* owner);

  bool grad_enabled() const;

  // Whether tensors may have tangents: inside torch.autograd.forward_ad.dual_level.
  bool has_dual_level() const;
  bool requires_grad(PyObject* tensor) const;

  // Whether memory holds its numbers with the other sign (torch._neg_view, z.conj().imag).
  bool is_negated(PyObject* tensor) const;

  // torch's count of in-place changes; -1 for inference tensors, which have none.
  std::int64_t version(PyObject* tensor) const;

  void* stream(DlDevice device) const;
};

inline DType dtype_of(DlType type) { return type == kDlF32 ? DType::f32 : DType::bf16; }

}  // namespace octavo::bindings
