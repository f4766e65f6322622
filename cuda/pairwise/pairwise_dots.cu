// Products of every pair of rows, sample by sample: class bf16 by tensor cores, class fp32 by FMAs. Memory bounds it at
// the sizes of feature interactions, so every operand is read once, 16 bytes at a time: a block stages the rows of one
// sample's tile, of several samples where they are small, multiplies them in units of 16 x 16 and writes what lies
// together in the output 16 bytes at a time. Nothing that a block computes depends on another one.
#include <algorithm>

#include "device/device.hpp"
#include "kernels.hpp"
#include "pairwise/output_runs.cuh"
#include "pairwise/products.cuh"

namespace octavo::cuda {
namespace {

constexpr int kWarps = kPairThreads / 32;
constexpr int kUnitsPerWarp = 2;
constexpr int kUnits = kWarps * kUnitsPerWarp;  // of a block
constexpr int kStagedRows = 256;                // of a block: 36 KiB
constexpr std::int64_t kLargest = 1 << 30;      // of F, G and D, so that sums of two are ints
constexpr std::int64_t kMostBlocks = 0x7fffffff;

struct Call {
  PairOperand x, y;
  PairOutput out;
  bool same;  // x is y
  std::int64_t batch;
  int depth;
  std::int64_t tiles_down, tiles_across;
  Panel x_panel, y_panel;  // of the first block
  Divisor by_units, by_units_across;
  int units_across, units_per_sample;
};

__device__ inline bool any_kept(Pairs pairs, int row, int column, int height, int width) {
  return pairs == Pairs::all || (pairs == Pairs::lower ? column < row + height - 1 : row < column + width - 1);
}

template <class Products>
__global__ void __launch_bounds__(kPairThreads, Products::kBlocks) multiply_pairs(const __grid_constant__ Call call) {
  wait_for_previous_kernels();
  Panel x = call.x_panel, y = call.y_panel;
  const std::int64_t block = blockIdx.x, tiles = call.tiles_down * call.tiles_across, tile = block % tiles;
  x.first_sample = y.first_sample = block / tiles * x.samples;
  x.first_row = static_cast<int>(tile / call.tiles_across) * x.height;
  y.first_row = static_cast<int>(tile % call.tiles_across) * y.height;
  if (!any_kept(call.out.pairs, x.first_row, y.first_row, x.height, y.height)) return;
  if (const std::int64_t left = call.batch - x.first_sample; left < x.samples)
    x.samples = y.samples = static_cast<int>(left);

  auto* rows = dynamic_shared<unsigned char>();
  const bool same = call.same && x.first_row == y.first_row && x.height == y.height;
  unsigned char* y_rows = same ? rows : rows + call.x_panel.samples * x.height * kRowBytes;
  const int warp = static_cast<int>(threadIdx.x) / 32, units = x.samples * call.units_per_sample;
  float sums[kUnitsPerWarp][2][4] = {};
  // Unit u of the block: a sample, and the first row and column of 16 of its tile.
  const auto place = [&](int u) {
    const auto [sample, rest] = call.by_units(u);
    const auto [down, across] = call.by_units_across(rest);
    return Group{sample, down * kUnit, across * kUnit};
  };
  const auto is_wanted = [&](int u) {
    if (u >= units) return false;
    const Group g = place(u);
    const int row = x.first_row + g.row, column = y.first_row + g.column;
    return row < call.x.rows && column < call.y.rows && any_kept(call.out.pairs, row, column, kUnit, kUnit);
  };

  for (int k = 0; k < call.depth; k += Products::kDepth) {
    if (k > 0) __syncthreads();  // the last panel was multiplied
    x.first_column = y.first_column = k;
    stage<typename Products::Element>(call.x, x, rows);
    if (!same) stage<typename Products::Element>(call.y, y, y_rows);
    __syncthreads();
    const int columns = call.depth - k < Products::kDepth ? call.depth - k : Products::kDepth;
#pragma unroll
    for (int i = 0; i < kUnitsPerWarp; ++i) {
      const int u = warp + i * kWarps;
      if (!is_wanted(u)) continue;
      const Group g = place(u);
      Products::add(rows + (g.sample * x.height + g.row) * kRowBytes,
                    y_rows + (g.sample * y.height + g.column) * kRowBytes, columns, sums[i]);
    }
  }

  __syncthreads();
  const OutputTile t{x.first_sample, x.samples, x.first_row, y.first_row, x.height, y.height, x.by_height};
  const int down = static_cast<int>(threadIdx.x) % 32 / 4, two = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int i = 0; i < kUnitsPerWarp; ++i) {
    const int u = warp + i * kWarps;
    if (!is_wanted(u)) continue;
    const Group g = place(u);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const RowInShared row(call.out, t, rows, g.sample, g.row + down + 8 * r);
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int e = 0; e < 2; ++e) row.put(y.first_row + g.column + 8 * h + two + e, sums[i][h][2 * r + e]);
    }
  }
  __syncthreads();
  copy_runs(call.out, t, rows);
}

PairOperand operand_of(const BatchView& v, Pairs pairs, std::int64_t depth) {
  const bool across = pairs == Pairs::all && v.cols > 1 && v.col_stride != 1;
  const std::int64_t line = across || pairs != Pairs::all ? v.col_stride : v.row_stride;
  const auto element = static_cast<std::int64_t>(size_of(v.dtype));
  const std::int64_t lines = across ? v.cols : v.rows;
  const bool aligned = is_aligned(v.data, v.batch_stride * element) && (lines <= 1 || line * element % 16 == 0);
  const std::int64_t rows = pairs == Pairs::all ? v.rows : depth;
  return {v.data, v.batch_stride, line, static_cast<int>(rows), static_cast<int>(depth), pairs, v.dtype == DType::bf16,
          across, aligned};
}

Panel panel_of(int samples, int units, int eights) {
  Panel p{};
  p.samples = samples;
  p.height = units * kUnit;
  p.items = samples * p.height * eights;
  p.by_eights = Divisor(eights);
  p.by_height = Divisor(p.height);
  p.by_row_groups = Divisor(p.height / kColumns);
  p.by_columns = Divisor(eights * kColumns);
  return p;
}

template <class T>
T parts(T n, T part) {
  return (n + part - 1) / part;
}

// About equal parts of at most `most`.
int balanced(int n, int most) { return parts(n, parts(n, most)); }

template <class Products>
Status run(const PairwiseArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  if (args.batch == 0 || args.rows() == 0 || args.y.rows == 0) return {};
  if (args.pairs != Pairs::all && args.rows() == 1) return {};
  if (args.rows() > kLargest || args.y.rows > kLargest || args.depth() > kLargest)
    return Status::unsupported("pairwise_dots: the CUDA kernels take up to 2^30 rows and columns of a sample");
  if (Status s = expect_aligned("pairwise_dots", {{"x", args.x.data, size_of(args.x.dtype)},
                                                  {"y", args.y.data, size_of(args.y.dtype)},
                                                  {"out", args.out, size_of(args.out_dtype)}});
      !s.ok())
    return s;
  const DeviceGuard guard(args.out);
  Call call{};
  call.x = operand_of(args.x, args.x_pairs, args.depth());
  call.y = operand_of(args.y, Pairs::all, args.depth());
  call.same = args.is_symmetric();
  call.batch = args.batch;
  call.depth = static_cast<int>(args.depth());

  // Of 16 x 16: a tile's units fit into a block's warps, its rows into shared memory.
  const int units_down = parts(call.x.rows, kUnit), units_across = parts(call.y.rows, kUnit);
  const int down = balanced(units_down, 4);
  const int across = balanced(units_across, std::min(kUnits / down, kStagedRows / kUnit - down));
  call.tiles_down = parts(units_down, down);
  call.tiles_across = parts(units_across, across);
  const bool one_tile = call.tiles_down == 1 && call.tiles_across == 1;
  const int staged = call.same && one_tile && down == across ? down : down + across;
  // Several samples where they are small, as long as every multiprocessor has some blocks.
  constexpr std::int64_t kBlocksEach = 3;
  const std::int64_t share = parts<std::int64_t>(args.batch, kBlocksEach * std::max(device_info().multiprocessors, 1));
  const int samples = static_cast<int>(
      std::clamp<std::int64_t>(std::min(kUnits / (down * across), kStagedRows / kUnit / staged), 1, share));
  const int eights = std::min(Products::kDepth, parts(std::max(call.depth, 1), 16) * 16) / kColumns;
  call.x_panel = panel_of(samples, down, eights);
  call.y_panel = panel_of(samples, across, eights);
  call.units_per_sample = down * across;
  call.by_units = Divisor(down * across);
  call.by_units_across = Divisor(across);

  PairOutput& out = call.out;
  out.data = static_cast<unsigned char*>(args.out);
  out.batch_stride = args.out_batch_stride;
  out.row_stride = args.out_row_stride;
  out.rows = call.x.rows;
  out.columns = call.y.rows;
  out.pairs = args.pairs;
  out.bf16 = args.out_dtype == DType::bf16;
  out.whole = one_tile && (args.pairs != Pairs::all || out.rows == 1 || out.row_stride == out.columns);
  const int width = across * kUnit;
  out.run_elements =
      out.whole ? (args.pairs == Pairs::all ? out.rows * out.columns : out.rows * (out.rows - 1) / 2) : width;
  out.run_bytes = parts(out.run_elements * out.element(), 16) * 16 + 16;
  out.by_words = Divisor(out.run_bytes / 16);

  const std::int64_t blocks = parts<std::int64_t>(args.batch, samples) * call.tiles_down * call.tiles_across;
  if (blocks > kMostBlocks)
    return Status::unsupported("pairwise_dots: more than 2^31 - 1 blocks of samples; split the batch");
  const int runs = out.whole ? samples : samples * down * kUnit;
  const int shared = std::max(samples * staged * kUnit * kRowBytes, runs * out.run_bytes);
  return launch("pairwise_dots", multiply_pairs<Products>, dim3(static_cast<unsigned>(blocks)), kPairThreads,
                static_cast<std::size_t>(shared), static_cast<cudaStream_t>(args.stream), call);
}

}  // namespace

Status pairwise_dots_fp32(const PairwiseArgs& args) { return run<Fp32Products>(args); }
Status pairwise_dots_bf16(const PairwiseArgs& args) { return run<Bf16Products>(args); }

}  // namespace octavo::cuda
