// Bytes [N, K] to [K, N]: the codes of a weight for products that want its other side contiguous.
#include "device/device.hpp"
#include "device/launch.cuh"
#include "kernels.hpp"

namespace octavo::cuda {
namespace {

constexpr int kTile = 64, kThreads = 256;

struct Bytes {
  const std::uint8_t* from;  // [rows, cols]
  std::uint8_t* to;          // [cols, ld]
  std::int64_t rows, cols, ld;
};

__global__ void __launch_bounds__(kThreads) transpose_bytes(const __grid_constant__ Bytes a) {
  wait_for_previous_kernels();
  __shared__ std::uint8_t tile[kTile][kTile + 4];  // four bytes a bank: the next row starts in the next bank
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * kTile;
  const std::int64_t first_column = static_cast<std::int64_t>(blockIdx.y) * kTile;
  const int across = static_cast<int>(threadIdx.x) % kTile, down = static_cast<int>(threadIdx.x) / kTile;
  for (int i = down; i < kTile; i += kThreads / kTile) {
    const std::int64_t row = first_row + i, column = first_column + across;
    tile[i][across] = row < a.rows && column < a.cols ? a.from[row * a.cols + column] : std::uint8_t{0};
  }
  __syncthreads();
  for (int i = down; i < kTile; i += kThreads / kTile) {
    const std::int64_t column = first_column + i, row = first_row + across;
    if (column < a.cols && row < a.ld) a.to[column * a.ld + row] = tile[across][i];
  }
}

}  // namespace

Status transpose_codes(const void* codes, std::int64_t n, std::int64_t k, void* out, std::int64_t ld,
                       cudaStream_t stream) {
  if (k == 0 || ld == 0) return {};
  if (ld > 0x7fffffff || k > kTile * 65535LL)
    return Status::unsupported("transpose_codes: takes up to 2^31 - 1 rows and 4,194,240 columns");
  const DeviceGuard guard(out);
  const Bytes bytes{static_cast<const std::uint8_t*>(codes), static_cast<std::uint8_t*>(out), n, k, ld};
  const auto tiles = [](std::int64_t size) { return static_cast<unsigned>((size + kTile - 1) / kTile); };
  return launch("transpose_codes", transpose_bytes, dim3(tiles(ld), tiles(k)), kThreads, 0, stream, bytes);
}

}  // namespace octavo::cuda
