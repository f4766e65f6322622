// Tiles of 1x128 and 128x128 to eight-bit codes, one scale a tile, x read once: a tile fits its threads' registers.
#include "device/device.hpp"
#include "device/launch.cuh"
#include "device/row_groups.cuh"
#include "kernels.hpp"
#include "octavo/quantize.hpp"
#include "quantize/codes.cuh"

namespace octavo::cuda {
namespace {

constexpr int kWidth = static_cast<int>(kScaleBlock), kLanesAcross = kWidth / kColumns;

struct Tiles {
  const void* x;
  std::int64_t rows, stride;
  int cols, ld;  // codes' rows are ld bytes apart, zeros from cols on
  int across;    // tiles side by side
  bool x_aligned, codes_aligned, pow2;
  DType format;
  std::uint8_t* codes;
  float* scale;  // of the tile (down, across): at down * scale_down + across * scale_across
  std::int64_t scale_down, scale_across;
};

// kLanes threads share a tile of kHeight rows, kLanesAcross of them on a row.
template <class In, int kHeight, int kLanes>
__global__ void __launch_bounds__(kRowThreads) quantize_tiles(const __grid_constant__ Tiles a) {
  wait_for_previous_kernels();
  constexpr int kRowsAtOnce = kLanes / kLanesAcross, kSteps = kHeight / kRowsAtOnce;
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
  RowScale s = row_scale(__uint_as_float(max_group<kLanes>(magnitude.largest)), a.format, a.pow2);
  if (a.format == DType::i8 && max_group<kLanes>(magnitude.nan) != 0) s.scale = __uint_as_float(0x7fc00000u);
  if (lane == 0 && first < a.rows) a.scale[down * a.scale_down + across * a.scale_across] = s.scale;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const std::int64_t row = first + step * kRowsAtOnce;
    const int room = a.ld - column;
    if (row >= a.rows || room <= 0) continue;
    store_codes(a.codes + row * a.ld + column, encode_columns(v[step], s.multiplier, a.format),
                room < kColumns ? room : kColumns, a.codes_aligned);
  }
}

template <class In, int kHeight, int kLanes>
Status launch_tiles(const Tiles& tiles, cudaStream_t stream) {
  constexpr std::int64_t kTilesAtOnce = kRowThreads / kLanes;
  const std::int64_t count = (tiles.rows + kHeight - 1) / kHeight * tiles.across;
  const std::int64_t blocks = (count + kTilesAtOnce - 1) / kTilesAtOnce;
  if (blocks > kMostRows) return Status::unsupported("quantize: x has too many tiles for one launch; split x");
  return launch("quantize_block", quantize_tiles<In, kHeight, kLanes>, dim3(static_cast<unsigned>(blocks)), kRowThreads,
                0, stream, tiles);
}

template <class In>
Status run(const Tiles& tiles, Scaling scaling, cudaStream_t stream) {
  return scaling == Scaling::block_1x128 ? launch_tiles<In, 1, kLanesAcross>(tiles, stream)
                                         : launch_tiles<In, kWidth, kRowThreads>(tiles, stream);
}

Status run(const QuantizeArgs& args, std::int64_t ld, std::int64_t scale_down, std::int64_t scale_across) {
  if (Status status = validate(args); !status.ok()) return status;
  if (args.scaling != Scaling::block_1x128 && args.scaling != Scaling::block_128x128)
    return Status::unsupported("quantize: this CUDA kernel serves block_1x128 and block_128x128 scaling");
  if (args.x.rows == 0 || ld == 0) return {};
  if (args.x.rows > kMostRows || ld > kMostColumns)
    return Status::unsupported("quantize: the CUDA kernel takes up to 2^31 - 1 rows and 2^30 columns; split x");
  if (Status s = expect_aligned("quantize", {{"x", args.x}, {"scales", args.scale, 4}}); !s.ok()) return s;
  const auto element = static_cast<std::int64_t>(size_of(args.x.dtype));
  const Tiles tiles{args.x.data,
                    args.x.rows,
                    args.x.row_stride,
                    static_cast<int>(args.x.cols),
                    static_cast<int>(ld),
                    static_cast<int>(scale_blocks(ld)),
                    is_aligned(args.x.data, args.x.rows > 1 ? args.x.row_stride * element : 0),
                    reinterpret_cast<std::uintptr_t>(args.codes) % 8 == 0 && ld % 8 == 0,
                    args.pow2_scale,
                    args.format,
                    static_cast<std::uint8_t*>(args.codes),
                    args.scale,
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

Status quantize_block(const QuantizeArgs& args) { return run(args, args.x.cols, scale_blocks(args.x.cols), 1); }

Status quantize_block_transposed(const QuantizeArgs& args, std::int64_t ld, std::int64_t scale_ld) {
  return run(args, ld, 1, scale_ld);
}

}  // namespace octavo::cuda
