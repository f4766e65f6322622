// [batch, rows, cols] as Python passes it.
#pragma once

#include <pybind11/stl.h>

#include <tuple>

#include "module.hpp"
#include "octavo/types.hpp"

namespace octavo::bindings {

// data, rows, cols, batch_stride, row_stride, col_stride, dtype
using Batch = std::tuple<std::uintptr_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, int>;

inline BatchView view_of(const char* argument, const Batch& batch, std::int64_t samples) {
  const auto& [data, rows, cols, batch_stride, row_stride, col_stride, dtype] = batch;
  expect_memory(argument, data, samples * rows * cols);
  return {
      reinterpret_cast<const void*>(data), rows, cols, batch_stride, row_stride, col_stride, static_cast<DType>(dtype)};
}

}  // namespace octavo::bindings
