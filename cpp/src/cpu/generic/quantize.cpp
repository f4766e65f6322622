// Any float format to E4M3, E5M2 or INT8 codes. Compiled with -ffp-contract=off.
#include <algorithm>

#include "cpu/generic/quantize_elements.hpp"
#include "octavo/threading.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

template <class In>
void quantize_matrix(const QuantizeArgs& args) {
  const auto* x = static_cast<const typename In::Storage*>(args.x.data);
  auto* codes = static_cast<std::uint8_t*>(args.codes);
  const std::int64_t rows = args.x.rows, cols = args.x.cols, stride = args.x.row_stride;
  const int count = rows * cols < 16384 ? 1 : threads();
  if (args.scaling == Scaling::row) {
    parallel_region(count, [&](int thread, int n) {
      const auto [begin, end] = partition(rows, thread, n);
      for (std::int64_t r = begin; r < end; ++r) {
        const ScalePair pair = scale_of(largest_magnitude<In>(x + r * stride, cols), args.format, args.pow2_scale);
        args.scale[r] = pair.scale;
        encode<In>(x + r * stride, cols, args.format, pair.multiplier, codes + r * cols);
      }
    });
    return;
  }
  constexpr int kMaxParts = 256;
  Magnitude parts[kMaxParts] = {};
  const int used = std::min(count, kMaxParts);
  parallel_region(used, [&](int thread, int n) {
    const auto [begin, end] = partition(rows, thread, n);
    Magnitude mine{0, false};
    for (std::int64_t r = begin; r < end; ++r) {
      const Magnitude row = largest_magnitude<In>(x + r * stride, cols);
      mine = {row.bits > mine.bits ? row.bits : mine.bits, mine.nan || row.nan};
    }
    parts[thread] = mine;
  });
  Magnitude all{0, false};
  for (int i = 0; i < used; ++i) all = {parts[i].bits > all.bits ? parts[i].bits : all.bits, all.nan || parts[i].nan};
  const ScalePair pair = scale_of(all, args.format, args.pow2_scale);
  args.scale[0] = pair.scale;
  parallel_region(used, [&](int thread, int n) {
    const auto [begin, end] = partition(rows, thread, n);
    for (std::int64_t r = begin; r < end; ++r)
      encode<In>(x + r * stride, cols, args.format, pair.multiplier, codes + r * cols);
  });
}

}  // namespace

Status quantize(const QuantizeArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  if (args.scaling != Scaling::row && args.scaling != Scaling::tensor)
    return Status::unsupported("cpu.generic.quantize: serves row and tensor scaling only");
  switch (args.x.dtype) {
    case DType::f32: quantize_matrix<F32>(args); break;
    case DType::bf16: quantize_matrix<Bf16>(args); break;
    default: quantize_matrix<F16>(args);
  }
  return {};
}

float quantize_row(const float* row, std::int64_t n, RowMagnitude magnitude, DType format, std::uint8_t* codes) {
  const ScalePair pair = scale_of(magnitude, format, false);
  encode<F32>(row, n, format, pair.multiplier, codes);
  return pair.scale;
}

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
