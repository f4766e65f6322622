// Which rows count, merging, and the signs of a sketch.
#include <bit>
#include <cmath>
#include <string>

#include "cpu/bag_random.hpp"
#include "octavo/float8.hpp"
#include "octavo/memory.hpp"
#include "octavo/statistics.hpp"
#include "statistics/rows.hpp"

namespace octavo {
namespace {

enum class RowKind { finite, nan, infinite };

template <class T>
RowKind copy_row(const T* row, std::int64_t k, float* out) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < k; ++i) {
    if constexpr (sizeof(T) == 2)
      out[i] = decode_bf16(row[i]);
    else
      out[i] = row[i];
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(out[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest < 0x7f800000u ? RowKind::finite : largest == 0x7f800000u ? RowKind::infinite : RowKind::nan;
}

// The finite rows of x, one after the other, in this thread's scratch memory; the others are counted.
template <class T>
FiniteRows finite_rows(const MatrixView& x, std::int64_t* counts) {
  auto* out =
      static_cast<float*>(scratch(kFiniteRowsSlot, static_cast<std::size_t>(x.rows * x.cols) * sizeof(float) + 64));
  std::int64_t kept = 0;
  for (std::int64_t r = 0; r < x.rows; ++r) {
    const RowKind kind = copy_row(static_cast<const T*>(x.data) + r * x.row_stride, x.cols, out + kept * x.cols);
    kept += kind == RowKind::finite;
    counts[kNanRows] += kind == RowKind::nan;
    counts[kInfiniteRows] += kind == RowKind::infinite;
  }
  return {out, kept, x.cols};
}

}  // namespace

Status observe(const MatrixView& x, const Moments& moments, const Tails* tails) {
  if (x.dtype != DType::f32 && x.dtype != DType::bf16) return Status::invalid("observe: x must be float32 or bfloat16");
  if (x.cols != moments.k)
    return Status::invalid("observe: x has rows of " + std::to_string(x.cols) + ", the moments are of rows of " +
                           std::to_string(moments.k));
  const FiniteRows rows =
      x.dtype == DType::f32 ? finite_rows<float>(x, moments.counts) : finite_rows<std::uint16_t>(x, moments.counts);
  if (rows.count == 0) return {};
  OCTAVO_CALL_GENERIC(add_moments, (MomentsArgs{rows, moments}));
  if (tails != nullptr && x.cols > 0) OCTAVO_CALL_GENERIC(add_tails, (TailsArgs{rows, *tails}));
  return {};
}

Status merge(const Moments& from, const Moments& into) {
  if (from.k != into.k || from.rank != into.rank)
    return Status::invalid("merge: moments of rows of " + std::to_string(from.k) + " with rank " +
                           std::to_string(from.rank) + " do not fit those of rows of " + std::to_string(into.k) +
                           " with rank " + std::to_string(into.rank));
  const std::int64_t k = into.k, before = into.counts[kRows], count = from.counts[kRows];
  for (int c = 0; c < kMomentCounts; ++c) into.counts[c] += from.counts[c];
  if (count == 0) return {};
  const BatchWeight batch(before, count);
  auto* difference = static_cast<double*>(scratch(kPanelsSlot, static_cast<std::size_t>(k + 1) * sizeof(double)));
  for (std::int64_t i = 0; i < k; ++i) {
    difference[i] = from.mean[i] - into.mean[i];
    into.mean[i] += batch.share * difference[i];
  }
  if (into.rank == 0) {
    for (std::int64_t i = 0; i < k; ++i)
      for (std::int64_t j = i; j < k; ++j)
        into.scatter[i * k + j] += from.scatter[i * k + j] + batch.weight * difference[i] * difference[j];
    return {};
  }
  const std::int64_t rank = into.rank;
  auto* signs = static_cast<float*>(scratch(kSignsSlot, static_cast<std::size_t>(k * rank) * sizeof(float)));
  auto* product = static_cast<double*>(scratch(kProductsSlot, static_cast<std::size_t>(rank) * sizeof(double)));
  sketch_signs(k, rank, signs);
  for (std::int64_t c = 0; c < rank; ++c) product[c] = 0;
  for (std::int64_t i = 0; i < k; ++i)
    for (std::int64_t c = 0; c < rank; ++c) product[c] += difference[i] * static_cast<double>(signs[i * rank + c]);
  for (std::int64_t i = 0; i < k; ++i) {
    into.diagonal[i] += from.diagonal[i] + batch.weight * difference[i] * difference[i];
    for (std::int64_t c = 0; c < rank; ++c)
      into.scatter[i * rank + c] += from.scatter[i * rank + c] + batch.weight * difference[i] * product[c];
  }
  return {};
}

void sketch_signs(std::int64_t k, std::int64_t rank, float* out) {
  const std::int64_t words = (rank + 63) / 64;
  for (std::int64_t i = 0; i < k; ++i)
    for (std::int64_t w = 0; w < words; ++w) {
      std::uint64_t bits = mix_bits(static_cast<std::uint64_t>(i * words + w) + kGolden);
      for (std::int64_t c = w * 64; c < rank && c < (w + 1) * 64; ++c, bits >>= 1)
        out[i * rank + c] = bits & 1 ? 1.0f : -1.0f;
    }
}

}  // namespace octavo
