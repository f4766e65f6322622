// Any float format to E4M3, E5M2 or INT8 codes. Compiled with -ffp-contract=off: x * multiplier rounds once.
#include "octavo/quantize.hpp"

#include <algorithm>
#include <bit>
#include <limits>

#include "cpu/generic/quantize_row.hpp"
#include "octavo/float8.hpp"
#include "octavo/threading.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

struct F32 {
  using Storage = float;
  [[gnu::always_inline]] static float load(float x) { return x; }
};
struct Bf16 {
  using Storage = std::uint16_t;
  [[gnu::always_inline]] static float load(std::uint16_t x) { return decode_bf16(x); }
};
struct F16 {
  using Storage = _Float16;
  [[gnu::always_inline]] static float load(_Float16 x) { return static_cast<float>(x); }
};

using Magnitude = RowMagnitude;

template <class In>
Magnitude largest_magnitude(const typename In::Storage* x, std::int64_t n) {
  constexpr std::uint32_t infinity = 0x7f800000u;
  std::uint32_t largest = 0, nan = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(In::load(x[i])) & 0x7fffffffu;
    const std::uint32_t finite = bits < infinity ? bits : 0;
    largest = finite > largest ? finite : largest;
    nan |= static_cast<std::uint32_t>(bits > infinity);
  }
  return {largest, nan != 0};
}

template <class In, class Encode>
void encode_row(const typename In::Storage* x, std::int64_t n, float multiplier, std::uint8_t* out, Encode encode) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = encode(In::load(x[i]) * multiplier);
}

template <class In>
void encode(const typename In::Storage* x, std::int64_t n, DType format, float multiplier, std::uint8_t* out) {
  switch (format) {
    case DType::e4m3: encode_row<In>(x, n, multiplier, out, [](float v) { return encode_e4m3(v); }); break;
    case DType::e5m2: encode_row<In>(x, n, multiplier, out, [](float v) { return encode_e5m2(v); }); break;
    default:
      encode_row<In>(x, n, multiplier, out, [](float v) {
        const float clamped = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v == v ? v : 0.0f;
        constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to nearest even
        return static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(clamped + magic));
      });
  }
}

ScalePair scale_of(Magnitude magnitude, DType format, bool pow2_scale) {
  ScalePair pair = scale_for(std::bit_cast<float>(magnitude.bits), format, pow2_scale);
  if (format == DType::i8 && magnitude.nan) pair.scale = std::numeric_limits<float>::quiet_NaN();
  return pair;
}

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
