// Sixteen columns a vector: rows of one table added to sums in registers, and sums written out.
#pragma once

#include "cpu/avx512/bag_formats.hpp"
#include "cpu/bag_prefetch.hpp"

namespace octavo::avx512_kernels {
namespace {

constexpr int kMaxVectors = 8;  // 128 columns a pass

[[gnu::always_inline]] inline __m256i to_bf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}

// Columns [first, first + 16 * (vectors - 1) + popcount(tail)) of a table's rows, fixed while its bags pass by.
// `weighted`: lookups have weights.
template <class Format, int vectors, bool weighted>
struct Columns {
  using Storage = typename Format::Storage;
  const Format& format;
  const Storage* rows;
  const std::int64_t* values;
  const float* weights;
  std::int64_t stride, skipped_bytes;
  std::uint64_t num_rows;
  __mmask16 tail;

  Columns(const Format& f, const TableView& table, const BagIndices& in, std::int64_t first, __mmask16 t)
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
  [[gnu::always_inline]] inline std::int64_t add(const BagAim& aim, std::int64_t v, std::int64_t end, __m512* sum,
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
      format.template add<vectors>(sum, rows + row * stride, _mm512_set1_ps(format.scale(row, weight)), tail);
    }
    return outside;
  }
};

template <int vectors>
[[gnu::always_inline]] inline void store(const MatrixView& out, std::int64_t at, const __m512* sum, __mmask16 tail) {
  if (out.dtype == DType::f32) {
    float* y = static_cast<float*>(out.data) + at;
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) _mm512_mask_storeu_ps(y + 16 * i, i + 1 < vectors ? 0xffff : tail, sum[i]);
  } else {
    auto* y = static_cast<std::uint16_t*>(out.data) + at;
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i)
      _mm256_mask_storeu_epi16(y + 16 * i, i + 1 < vectors ? 0xffff : tail, to_bf16(sum[i]));
  }
}

// Calls visit with the number of vectors that the last columns of `dim` need, as a constant.
template <class Visit>
std::int64_t with_vectors(std::int64_t dim, Visit&& visit) {
  switch ((dim - 1) % (16 * kMaxVectors) / 16) {
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

// Where the last pass over rows of `dim` columns starts, and which lanes of its last vector are columns.
struct LastPass {
  std::int64_t first;
  __mmask16 tail;
  explicit LastPass(std::int64_t dim)
      : first((dim - 1) / (16 * kMaxVectors) * (16 * kMaxVectors)),
        tail(static_cast<__mmask16>((1u << ((dim - 1) % 16 + 1)) - 1)) {}
};

// Calls visit<Format>() for the rows of a table. `E4m3`: how this kernel decodes E4M3.
template <class E4m3, class Visit>
std::int64_t with_format(DType dtype, Visit&& visit) {
  switch (dtype) {
    case DType::f32: return visit.template operator()<F32>();
    case DType::f16: return visit.template operator()<SixteenBit<F16>>();
    case DType::bf16: return visit.template operator()<SixteenBit<Bf16>>();
    case DType::e4m3: return visit.template operator()<E4m3>();
    case DType::u8: return visit.template operator()<Int8>();
    default: return visit.template operator()<Int4>();
  }
}

}  // namespace
}  // namespace octavo::avx512_kernels
