// [batch, rows, cols] as Python passes it.
#pragma once

#include <pybind11/stl.h>

#include <tuple>

#include "octavo/types.hpp"

namespace octavo::bindings {

// data, rows, cols, batch_stride, row_stride, col_stride, dtype
using Batch = std::tuple<std::uintptr_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, int>;

inline BatchView view_of(const Batch& batch) {
  const auto& [data, rows, cols, batch_stride, row_stride, col_stride, dtype] = batch;
  return {
      reinterpret_cast<const void*>(data), rows, cols, batch_stride, row_stride, col_stride, static_cast<DType>(dtype)};
}

}  // namespace octavo::bindings
