#include "gemm_reference.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "activation.hpp"
#include "emulator.hpp"
#include "gemm/layers.hpp"
#include "octavo/float8.hpp"
#include "octavo/quantize.hpp"

namespace octavo::testing {
namespace {
int g_last_tile = -1, g_launches = 0, g_preparations = 0;
}  // namespace

cuda::Store store_of_last() { return cuda::kTiles[static_cast<std::size_t>(g_last_tile)].store; }
int gemm_launches() { return g_launches; }
int gemm_preparations() { return g_preparations; }
}  // namespace octavo::testing

namespace octavo::cuda {
namespace {

double bf16_at(const void* data, std::int64_t at) { return decode_bf16(static_cast<const std::uint16_t*>(data)[at]); }

double operand_at(Product product, bool of_x, const void* data, std::int64_t at) {
  if (product == Product::bf16) return bf16_at(data, at);
  const std::uint8_t code = static_cast<const std::uint8_t*>(data)[at];
  return of_x && product == Product::e5m2 ? decode_e5m2(code) : decode_e4m3(code);
}

double element(const MatrixView& v, std::int64_t row, std::int64_t col) {
  const std::int64_t at = row * v.row_stride + col;
  return v.dtype == DType::bf16 ? bf16_at(v.data, at) : static_cast<const float*>(v.data)[at];
}

// Every address and stride that a tensor map needs: multiples of 16 bytes, rows that do not overlap.
std::string unloadable(const Tile& tile, const Gemm& g) {
  const std::int64_t bytes = bytes_of(tile.product);
  const std::int64_t x_row = tile.x_major == Major::k ? g.k : g.m, w_row = tile.w_major == Major::k ? g.k : g.n;
  if (!rows_are_aligned(g.x, g.ldx * bytes) || g.ldx < x_row) return "rows of x";
  if (!rows_are_aligned(g.w, g.ldw * bytes) || g.ldw < w_row) return "rows of w";
  if (g.x_batch * bytes % 16 != 0 || g.w_batch * bytes % 16 != 0) return "batches";
  if (tile.product == Product::e4m3_block && !rows_are_aligned(g.x_scale, block_scale_ld(g.m) * 4))
    return "scales of x";
  if (g.batch == 1) return "";
  const bool behind = g.d_batch >= static_cast<std::int64_t>(g.m - 1) * g.ldd + g.n;
  if (!behind && (g.batch - 1) * g.d_batch + g.n > g.ldd) return "d's batches";
  if (tile.store != Store::direct && g.d_batch * 2 % 16 != 0) return "d's batches";
  if (g.norm != NormKind::none && g.column_batch != g.n) return "vectors that the norm takes for neighbours";
  return "";
}

// What the sum's part from k on, up to the next multiple of 128, is multiplied by.
double block_scale(const Gemm& g, std::int64_t row, std::int64_t col, std::int64_t k) {
  const std::int64_t block = k / kScaleBlock;
  return static_cast<double>(g.x_scale[block * block_scale_ld(g.m) + row]) *
         g.w_scale[col / kScaleBlock * scale_blocks(g.k) + block];
}

// `g`: of one product.
void finish_row(const Gemm& g, std::int64_t row, std::vector<double>& z) {
  for (int c = 0; c < g.n; ++c) {
    if (g.bias != nullptr) z[c] += g.bias[c];
    if (g.residual.data != nullptr && g.residual_first) z[c] += element(g.residual, row, c);
  }
  if (g.norm != NormKind::none) {
    const int block = g.norm_block == 0 ? g.n : g.norm_block;
    for (int begin = 0; begin < g.n; begin += block) {
      const int end = std::min(begin + block, g.n);
      double mean = 0, squares = 0;
      if (g.norm == NormKind::layer)
        for (int c = begin; c < end; ++c) mean += z[c] / (end - begin);
      for (int c = begin; c < end; ++c) squares += (z[c] - mean) * (z[c] - mean) / (end - begin);
      for (int c = begin; c < end; ++c) {
        z[c] = (z[c] - mean) / std::sqrt(squares + g.eps);
        if (g.norm_weight != nullptr) z[c] *= g.norm_weight[c];
        if (g.norm_bias != nullptr) z[c] += g.norm_bias[c];
      }
    }
  }
  for (int c = 0; c < g.n; ++c) {
    z[c] = activate(static_cast<float>(z[c]), g.activation);
    if (g.residual.data != nullptr && !g.residual_first) z[c] += element(g.residual, row, c);
  }
}

// The `at`-th product of a batch.
Gemm part_of(const Gemm& g, std::int64_t at, const Tile& tile) {
  Gemm part = g;
  part.x = static_cast<const char*>(g.x) + at * g.x_batch * bytes_of(tile.product);
  part.w = static_cast<const char*>(g.w) + at * g.w_batch * bytes_of(tile.product);
  part.d = static_cast<char*>(g.d) + at * g.d_batch * static_cast<std::int64_t>(size_of(g.d_dtype));
  if (g.x_scale != nullptr) part.x_scale += at * g.row_batch;
  for (const float** vector : {&part.w_scale, &part.bias, &part.norm_weight, &part.norm_bias})
    if (*vector != nullptr) *vector += at * g.column_batch;
  return part;
}

void multiply(int index, const Gemm& all) {
  const Tile& tile = kTiles[static_cast<std::size_t>(index)];
  const bool has_blocks = tile.product == Product::e4m3_block;
  const auto at = [](Major major, std::int64_t ld, std::int64_t row, std::int64_t k) {
    return major == Major::k ? row * ld + k : k * ld + row;
  };
  std::vector<double> z(static_cast<std::size_t>(all.n));
  for (std::int64_t b = 0; b < all.batch; ++b) {
    const Gemm g = part_of(all, b, tile);
    for (std::int64_t r = 0; r < g.m; ++r) {
      for (std::int64_t c = 0; c < g.n; ++c) {
        double sum = 0;
        for (std::int64_t k = 0; k < g.k; ++k)
          sum += operand_at(tile.product, true, g.x, at(tile.x_major, g.ldx, r, k)) *
                 operand_at(tile.product, false, g.w, at(tile.w_major, g.ldw, c, k)) *
                 (has_blocks ? block_scale(g, r, c, k) : 1.0);
        if (!has_blocks && g.x_scale != nullptr) sum *= g.x_scale[r];
        if (!has_blocks && g.w_scale != nullptr) sum *= g.w_scale[c];
        z[static_cast<std::size_t>(c)] = sum;
      }
      finish_row(g, r, z);
      ScalePair scale{};
      if (g.d_dtype == DType::e4m3) {
        float largest = 0;
        for (const double v : z) largest = std::max(largest, std::fabs(static_cast<float>(v)));
        scale = scale_for(largest, DType::e4m3, false);
        g.d_scale[r] = scale.scale;
      }
      for (std::int64_t c = 0; c < g.n; ++c) {
        const std::int64_t to = r * g.ldd + c;
        const auto value = static_cast<float>(z[static_cast<std::size_t>(c)]);
        if (g.d_dtype == DType::e4m3)
          static_cast<std::uint8_t*>(g.d)[to] = encode_e4m3(value * scale.multiplier);
        else if (g.d_dtype == DType::f32)
          static_cast<float*>(g.d)[to] = value;
        else
          static_cast<std::uint16_t*>(g.d)[to] = encode_bf16(value);
      }
    }
  }
}

}  // namespace

template <int kIndex>
Status accepts_tile(const Gemm&) {
  return {};
}

// The parameters are the problem itself: what is kept for another one gives another result.
template <int kIndex>
Status prepare_tile(const Gemm& all, void* row, StreamBuffer&, cudaStream_t, GemmParams& params) {
  const Tile& tile = kTiles[kIndex];
  ++testing::g_preparations;
  const std::string refusal = tile_refusal(tile, request_of(all, tile.product, tile.x_major, tile.w_major));
  if (!refusal.empty()) return Status::invalid(std::string(tile.name) + " was given what it refuses: " + refusal);
  if (const std::string what = unloadable(tile, all); !what.empty())
    return Status::invalid(std::string(tile.name) + ": no tensor map can describe " + what);
  if ((all.d_dtype == DType::e4m3) != (row != nullptr)) return Status::invalid("a row of scratch is for codes alone");
  static_assert(sizeof(Gemm) <= sizeof(params.bytes));
  std::memcpy(params.bytes, &all, sizeof(all));
  return {};
}

template <int kIndex>
Status launch_tile(const GemmParams& params, cudaStream_t, bool) {
  testing::g_last_tile = kIndex;
  ++testing::g_launches;
  Gemm g;
  std::memcpy(&g, params.bytes, sizeof(g));
  cuda_emulator::in_stream([g] { multiply(kIndex, g); });
  return {};
}

// What gemm.cpp's table names.
template <int... kIndex>
auto all_of(std::integer_sequence<int, kIndex...>) {
  return std::tuple{std::tuple{&accepts_tile<kIndex>, &prepare_tile<kIndex>, &launch_tile<kIndex>}...};
}
[[maybe_unused]] extern const auto kAllTiles = all_of(std::make_integer_sequence<int, kTileCount>{});

}  // namespace octavo::cuda
