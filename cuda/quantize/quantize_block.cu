// Tiles of 1x128, 128x128 and MX blocks of 1x32 to eight-bit codes, one scale a tile, x read once: a tile fits its
// threads' registers.
#include "device/device.hpp"
#include "device/launch.cuh"
#include "device/row_groups.cuh"
#include "kernels.hpp"
#include "octavo/quantize.hpp"
#include "quantize/codes.cuh"

namespace octavo::cuda {
namespace {

struct Tiles {
  const void* x;
  std::int64_t rows, stride;
  int cols, ld;  // codes' rows are ld bytes apart, zeros from cols on
  int across;    // tiles side by side
  bool x_aligned, codes_aligned, pow2;
  DType format;
  std::uint8_t* codes;
  float* scale;              // of the tile (down, across): at down * scale_down + across * scale_across
  std::uint8_t* scale_e8m0;  // instead, of MX blocks
  std::int64_t scale_down, scale_across;
};

// kLanes threads share a tile, kLanesAcross of them on a row.
template <Scaling kScaling>
struct TileThreads {
  static constexpr int kHeight = tile_of(kScaling).rows, kWidth = tile_of(kScaling).cols;
  static constexpr int kLanesAcross = kWidth / kColumns, kLanes = kHeight == 1 ? kLanesAcross : kRowThreads;
};

// The tile's scale goes to a.scale[at], or a.scale_e8m0; the multiplier.
template <Scaling kScaling>
__device__ float tile_scale(const Tiles& a, const Magnitude& magnitude, bool is_writer, std::int64_t at) {
  constexpr int kLanes = TileThreads<kScaling>::kLanes;
  const float largest = __uint_as_float(max_group<kLanes>(magnitude.largest));
  if constexpr (kScaling == Scaling::mx) {
    const MxRowScale s = mx_row_scale(largest, a.format);
    if (is_writer) a.scale_e8m0[at] = s.e8m0;
    return s.multiplier;
  } else {
    RowScale s = row_scale(largest, a.format, a.pow2);
    if (a.format == DType::i8 && max_group<kLanes>(magnitude.nan) != 0) s.scale = __uint_as_float(0x7fc00000u);
    if (is_writer) a.scale[at] = s.scale;
    return s.multiplier;
  }
}

template <class In, Scaling kScaling>
__global__ void __launch_bounds__(kRowThreads) quantize_tiles(const __grid_constant__ Tiles a) {
  wait_for_previous_kernels();
  using Threads = TileThreads<kScaling>;
  constexpr int kHeight = Threads::kHeight, kWidth = Threads::kWidth, kLanes = Threads::kLanes;
  constexpr int kLanesAcross = Threads::kLanesAcross, kRowsAtOnce = kLanes / kLanesAcross;
  constexpr int kSteps = kHeight / kRowsAtOnce;
  const std::int64_t tile = static_cast<std::int64_t>(blockIdx.x) * (kRowThreads / kLanes) + threadIdx.x / kLanes;
  const std::int64_t down = tile / a.across;  // beyond the last rows: the lanes have none, and reduce along
  const int across = static_cast<int>(tile % a.across), lane = static_cast<int>(threadIdx.x) % kLanes;
  const int column = across * kWidth + lane % kLanesAcross * kColumns;
  const std::int64_t first = down * kHeight + lane / kLanesAcross;
  float v[kSteps][kColumns];
  Magnitude magnitude;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const std::int64_t row = first + step * kRowsAtOnce;
    const int count = row < a.rows ? a.cols - column : 0;
    load_columns(static_cast<const In*>(a.x) + (count > 0 ? row * a.stride + column : 0), count, a.x_aligned, v[step]);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) magnitude.add(v[step][j]);  // outside x they are 0
  }
  const float multiplier =
      tile_scale<kScaling>(a, magnitude, lane == 0 && first < a.rows, down * a.scale_down + across * a.scale_across);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const std::int64_t row = first + step * kRowsAtOnce;
    const int room = a.ld - column;
    if (row >= a.rows || room <= 0) continue;
    store_codes(a.codes + row * a.ld + column, encode_columns(v[step], multiplier, a.format),
                room < kColumns ? room : kColumns, a.codes_aligned);
  }
}

template <class In, Scaling kScaling>
Status launch_tiles(const Tiles& tiles, cudaStream_t stream) {
  using Threads = TileThreads<kScaling>;
  constexpr std::int64_t kTilesAtOnce = kRowThreads / Threads::kLanes;
  const std::int64_t count = (tiles.rows + Threads::kHeight - 1) / Threads::kHeight * tiles.across;
  const std::int64_t blocks = (count + kTilesAtOnce - 1) / kTilesAtOnce;
  if (blocks > kMostRows) return Status::unsupported("quantize: x has too many tiles for one launch; split x");
  return launch("quantize_block", quantize_tiles<In, kScaling>, dim3(static_cast<unsigned>(blocks)), kRowThreads, 0,
                stream, tiles);
}

template <class In>
Status run(const Tiles& tiles, Scaling scaling, cudaStream_t stream) {
  switch (scaling) {
    case Scaling::block_1x128: return launch_tiles<In, Scaling::block_1x128>(tiles, stream);
    case Scaling::block_128x128: return launch_tiles<In, Scaling::block_128x128>(tiles, stream);
    default: return launch_tiles<In, Scaling::mx>(tiles, stream);  // no other comes here
  }
}

std::int64_t blocks_across(Scaling scaling, std::int64_t cols) {
  const std::int64_t width = tile_of(scaling).cols;
  return (cols + width - 1) / width;
}

Status run(const QuantizeArgs& args, std::int64_t ld, std::int64_t scale_down, std::int64_t scale_across) {
  if (Status status = validate(args); !status.ok()) return status;
  if (args.x.rows == 0 || ld == 0) return {};
  if (args.x.rows > kMostRows || ld > kMostColumns)
    return Status::unsupported("quantize: the CUDA kernel takes up to 2^31 - 1 rows and 2^30 columns; split x");
  const bool is_mx = args.scaling == Scaling::mx;
  if (Status s = expect_aligned("quantize", {{"x", args.x}, {"scales", is_mx ? nullptr : args.scale, 4}}); !s.ok())
    return s;
  const auto element = static_cast<std::int64_t>(size_of(args.x.dtype));
  const Tiles tiles{args.x.data,
                    args.x.rows,
                    args.x.row_stride,
                    static_cast<int>(args.x.cols),
                    static_cast<int>(ld),
                    static_cast<int>(blocks_across(args.scaling, ld)),
                    is_aligned(args.x.data, args.x.rows > 1 ? args.x.row_stride * element : 0),
                    reinterpret_cast<std::uintptr_t>(args.codes) % 8 == 0 && ld % 8 == 0,
                    args.pow2_scale,
                    args.format,
                    static_cast<std::uint8_t*>(args.codes),
                    args.scale,
                    args.scale_e8m0,
                    scale_down,
                    scale_across};
  const DeviceGuard guard(args.x.data);
  const auto stream = static_cast<cudaStream_t>(args.stream);
  switch (args.x.dtype) {
    case DType::f32: return run<float>(tiles, args.scaling, stream);
    case DType::bf16: return run<__nv_bfloat16>(tiles, args.scaling, stream);
    default: return run<__half>(tiles, args.scaling, stream);
  }
}

}  // namespace

Status quantize_block(const QuantizeArgs& args) {
  if (tile_of(args.scaling).cols == 0)
    return Status::unsupported("quantize: this CUDA kernel serves block_1x128, block_128x128 and mx scaling");
  return run(args, args.x.cols, blocks_across(args.scaling, args.x.cols), 1);
}

Status quantize_block_transposed(const QuantizeArgs& args, std::int64_t ld, std::int64_t scale_ld) {
  if (args.scaling != Scaling::block_1x128)
    return Status::unsupported("quantize: scales lie transposed in block_1x128 scaling alone");
  return run(args, ld, 1, scale_ld);
}

}  // namespace octavo::cuda
