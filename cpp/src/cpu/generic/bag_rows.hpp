// Rows of every format, added and written in plain C++. Included by files that are compiled once per instruction set.
#pragma once

#include "octavo/embedding.hpp"
#include "octavo/float8.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

struct E4m3Values {
  float of[256];
  E4m3Values() {
    for (int code = 0; code < 256; ++code) of[code] = decode_e4m3(static_cast<std::uint8_t>(code));
  }
};

// Adds weight * row to acc [dim].
[[gnu::always_inline]] inline void add_row(const TableView& table, const E4m3Values& e4m3, std::int64_t row,
                                           float weight, float* __restrict acc) {
  const std::int64_t dim = table.dim, at = row * table.row_stride;
  switch (table.dtype) {
    case DType::f32: {
      const float* __restrict x = static_cast<const float*>(table.rows) + at;
      for (std::int64_t c = 0; c < dim; ++c) acc[c] += weight * x[c];
      break;
    }
    case DType::f16: {
      const std::uint16_t* __restrict x = static_cast<const std::uint16_t*>(table.rows) + at;
      for (std::int64_t c = 0; c < dim; ++c) acc[c] += weight * decode_f16(x[c]);
      break;
    }
    case DType::bf16: {
      const std::uint16_t* __restrict x = static_cast<const std::uint16_t*>(table.rows) + at;
      for (std::int64_t c = 0; c < dim; ++c) acc[c] += weight * decode_bf16(x[c]);
      break;
    }
    case DType::e4m3: {
      const std::uint8_t* __restrict x = static_cast<const std::uint8_t*>(table.rows) + at;
      const float scale =
          weight * (table.scale_exponents != nullptr ? decode_e8m0(table.scale_exponents[row]) : *table.scale_of(row));
      for (std::int64_t c = 0; c < dim; ++c) acc[c] += scale * e4m3.of[x[c]];
      break;
    }
    case DType::u8: {
      const std::uint8_t* __restrict x = static_cast<const std::uint8_t*>(table.rows) + at;
      const float scale = weight * table.scale_of(row)[0], bias = weight * table.scale_of(row)[1];
      for (std::int64_t c = 0; c < dim; ++c) acc[c] += scale * static_cast<float>(x[c]) + bias;
      break;
    }
    default: {
      const std::uint8_t* __restrict x = static_cast<const std::uint8_t*>(table.rows) + at;
      const float scale = weight * table.scale_of(row)[0], bias = weight * table.scale_of(row)[1];
      for (std::int64_t c = 0; c + 1 < dim; c += 2) {
        acc[c] += scale * static_cast<float>(x[c / 2] & 15) + bias;
        acc[c + 1] += scale * static_cast<float>(x[c / 2] >> 4) + bias;
      }
      if (dim % 2 == 1) acc[dim - 1] += scale * static_cast<float>(x[dim / 2] & 15) + bias;
    }
  }
}

// acc [dim] to row `row` of `out`, from column `column` on.
[[gnu::always_inline]] inline void store_row(const MatrixView& out, std::int64_t row, std::int64_t column,
                                             std::int64_t dim, const float* __restrict acc) {
  const std::int64_t at = row * out.row_stride + column;
  if (out.dtype == DType::f32) {
    float* __restrict y = static_cast<float*>(out.data) + at;
    for (std::int64_t c = 0; c < dim; ++c) y[c] = acc[c];
  } else {
    auto* __restrict y = static_cast<std::uint16_t*>(out.data) + at;
    for (std::int64_t c = 0; c < dim; ++c) y[c] = encode_bf16(acc[c]);
  }
}

// Floats of the widest row.
inline std::int64_t widest(const TableView* tables, std::int64_t count) {
  std::int64_t dim = 0;
  for (std::int64_t t = 0; t < count; ++t) dim = dim < tables[t].dim ? tables[t].dim : dim;
  return dim;
}

}  // namespace
}  // namespace octavo::OCTAVO_ISA_NAMESPACE
