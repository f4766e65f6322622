// Columns of a table's rows added to sums in registers: the loop over lookups that every instruction set shares.
//
// A format reads rows of one type with one instruction set's registers (generic/bag_formats.hpp,
// avx512/bag_formats.hpp). It has
//   Vector, lanes              a register of FP32 sums
//   Storage, vector_bytes      an element of `rows`; what `lanes` columns of it take
//   at(column)                 the element where a column starts
//   tail(dim, first) -> Tail   the last vector of a pass from column `first` to column dim - 1
//   scale(row, weight)         the row's scale folded into the weight
//   bias(row, weight)          what every column gets on top
//   add<vectors>(sum, x, scale, tail), store<vectors>(out, at, sum, tail)
// Loads stay inside the row: a wider one would touch the next cache line, which nobody prefetched.
//
// In an anonymous namespace: compiled with several instruction sets, and the linker must never mix the copies.
#pragma once

#include "cpu/bag_prefetch.hpp"
#include "octavo/float8.hpp"

namespace octavo {
namespace {

constexpr int kMaxVectors = 8;  // of sums in a pass

// Columns of a table's rows from `first` on, fixed while its bags pass by. `weighted`: lookups have weights.
template <class Format, int vectors, bool weighted>
struct Columns {
  using Storage = typename Format::Storage;
  using Vector = typename Format::Vector;
  using Tail = typename Format::Tail;
  const Format& format;
  const Storage* rows;
  const std::int64_t* values;
  const float* weights;
  std::int64_t stride, skipped_bytes;
  std::uint64_t num_rows;
  Tail tail;

  Columns(const Format& f, const TableView& table, const BagIndices& in, std::int64_t first, Tail t)
      : format(f),
        rows(static_cast<const Storage*>(table.rows) + Format::at(first)),
        values(in.values),
        weights(in.weights),
        stride(table.row_stride),
        skipped_bytes(Format::at(first) * static_cast<std::int64_t>(sizeof(Storage))),
        num_rows(static_cast<std::uint64_t>(table.num_rows)),
        tail(t) {}

  // Adds lookups [v, end), all before aim.until, to the sums and their biases to `bias`; returns how many rows lie
  // outside the table.
  [[gnu::always_inline]] inline std::int64_t add(const BagAim& aim, std::int64_t v, std::int64_t end, Vector* sum,
                                                 float& bias) const {
    std::int64_t outside = 0;
    for (; v < end; ++v) {
      const std::int64_t row = values[v];
      prefetch_row<Format::vector_bytes * vectors>(aim, values[v + aim.ahead], skipped_bytes);
      if (__builtin_expect(static_cast<std::uint64_t>(row) >= num_rows, 0)) {
        ++outside;
        continue;
      }
      const float weight = weighted ? weights[v] : 1.0f;
      bias += format.bias(row, weight);
      format.template add<vectors>(sum, rows + row * stride, format.scale(row, weight) - Vector{}, tail);
    }
    return outside;
  }
};

// Calls visit with the number of vectors that the last columns of `dim` need, as a constant.
template <int lanes, class Visit>
std::int64_t with_vectors(std::int64_t dim, Visit&& visit) {
  switch ((dim - 1) % (lanes * kMaxVectors) / lanes) {
    case 0: return visit.template operator()<1>();
    case 1: return visit.template operator()<2>();
    case 2: return visit.template operator()<3>();
    case 3: return visit.template operator()<4>();
    case 4: return visit.template operator()<5>();
    case 5: return visit.template operator()<6>();
    case 6: return visit.template operator()<7>();
    default: return visit.template operator()<8>();
  }
}

// Where the last pass over rows of `dim` columns starts.
template <class Format>
std::int64_t last_pass(std::int64_t dim) {
  constexpr std::int64_t columns = Format::lanes * kMaxVectors;
  return (dim - 1) / columns * columns;
}

// Calls visit<Format>() for the rows of a table. `Formats`: those of an instruction set, by name.
template <class Formats, class Visit>
std::int64_t with_format(DType dtype, Visit&& visit) {
  switch (dtype) {
    case DType::f32: return visit.template operator()<typename Formats::F32>();
    case DType::f16: return visit.template operator()<typename Formats::F16>();
    case DType::bf16: return visit.template operator()<typename Formats::Bf16>();
    case DType::e4m3: return visit.template operator()<typename Formats::E4m3>();
    case DType::u8: return visit.template operator()<typename Formats::Int8>();
    default: return visit.template operator()<typename Formats::Int4>();
  }
}

// E4M3's scale of each row, in FP32 or as a power of two.
struct RowScales {
  const float* scale;
  std::int64_t stride;
  const std::uint8_t* exponents;

  explicit RowScales(const TableView& table)
      : scale(table.scale), stride(table.scale_stride), exponents(table.scale_exponents) {}
  [[gnu::always_inline]] float operator()(std::int64_t row) const {
    if (exponents == nullptr) return scale[row * stride];
    return decode_e8m0(exponents[row]);
  }
};

// Scale and bias of affine codes.
struct RowAffine {
  const float* scale_bias;
  std::int64_t stride;

  explicit RowAffine(const TableView& table) : scale_bias(table.scale), stride(table.scale_stride) {}
  [[gnu::always_inline]] float scale(std::int64_t row, float weight) const { return scale_bias[row * stride] * weight; }
  [[gnu::always_inline]] float bias(std::int64_t row, float weight) const {
    return scale_bias[row * stride + 1] * weight;
  }
};

}  // namespace
}  // namespace octavo
