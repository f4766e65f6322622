// Tiles of 1x128 and 128x128 with FP32 scales, and MX blocks of 32 with E8M0 scales: they serve plans and tests, and
// Hopper's kernels as their definition. Compiled with -ffp-contract=off.
#include <algorithm>

#include "cpu/generic/quantize_elements.hpp"
#include "octavo/threading.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

// rule(magnitude, index of the scale) writes the scale and returns the multiplier.
template <class In, class Rule>
void quantize_tiles(const QuantizeArgs& args, Rule rule) {
  const auto* x = static_cast<const typename In::Storage*>(args.x.data);
  auto* codes = static_cast<std::uint8_t*>(args.codes);
  const std::int64_t rows = args.x.rows, cols = args.x.cols, stride = args.x.row_stride;
  const ScaleTile tile = tile_of(args.scaling);
  const std::int64_t per_row = (cols + tile.cols - 1) / tile.cols;
  const int count = rows * cols < 16384 ? 1 : threads();
  parallel_region(count, [&](int thread, int n) {
    const auto [begin, end] = partition(rows, thread, n, tile.rows);
    for (std::int64_t top = begin; top < end; top += tile.rows) {
      const std::int64_t bottom = std::min(top + tile.rows, rows);
      for (std::int64_t block = 0; block < per_row; ++block) {
        const std::int64_t left = block * tile.cols, width = std::min(tile.cols, cols - left);
        Magnitude all{0, false};
        for (std::int64_t r = top; r < bottom; ++r) {
          const Magnitude part = largest_magnitude<In>(x + r * stride + left, width);
          all = {std::max(all.bits, part.bits), all.nan || part.nan};
        }
        const float multiplier = rule(all, top / tile.rows * per_row + block);
        for (std::int64_t r = top; r < bottom; ++r)
          encode<In>(x + r * stride + left, width, args.format, multiplier, codes + r * cols + left);
      }
    }
  });
}

template <class Rule>
Status for_every_type(const QuantizeArgs& args, Rule rule) {
  switch (args.x.dtype) {
    case DType::f32: quantize_tiles<F32>(args, rule); break;
    case DType::bf16: quantize_tiles<Bf16>(args, rule); break;
    default: quantize_tiles<F16>(args, rule);
  }
  return {};
}

}  // namespace

Status quantize_block(const QuantizeArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  if (args.scaling != Scaling::block_1x128 && args.scaling != Scaling::block_128x128)
    return Status::unsupported("cpu.generic.quantize_block: serves block_1x128 and block_128x128 scaling only");
  return for_every_type(args, [&](Magnitude magnitude, std::int64_t at) {
    const ScalePair pair = scale_of(magnitude, args.format, args.pow2_scale);
    args.scale[at] = pair.scale;
    return pair.multiplier;
  });
}

Status quantize_mx(const QuantizeArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  if (args.scaling != Scaling::mx) return Status::unsupported("cpu.generic.quantize_mx: serves mx scaling only");
  return for_every_type(args, [&](Magnitude magnitude, std::int64_t at) {
    const MxScale scale = mx_scale_for(std::bit_cast<float>(magnitude.bits), args.format);
    args.scale_e8m0[at] = scale.e8m0;
    return scale.multiplier;
  });
}

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
