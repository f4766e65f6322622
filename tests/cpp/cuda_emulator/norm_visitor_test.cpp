// The norm in the GEMM's epilogue (cuda/gemm/norm_visitor.cuh) on the CPU: real fragments and coordinates from
// CUTLASS's layouts, one warpgroup on the emulator. Needs CUTLASS's headers.
#include "gemm/norm_visitor.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "cute/arch/copy_sm90.hpp"
#include "cute/arch/mma_sm90_gmma.hpp"
#include "cute/atom/copy_atom.hpp"
#include "cute/atom/copy_traits_sm90.hpp"
#include "cute/atom/mma_atom.hpp"
#include "cute/atom/mma_traits_sm90_gmma.hpp"
#include "cute/tensor.hpp"
#include "emulator.hpp"
#include "octavo/float8.hpp"

namespace octavo::testing {
namespace {

using namespace cute;

enum class Residue { none, narrow, wide };

struct Norm {
  bool centred, vectors;
  Activation activation;
  int block = 0;  // 0: whole rows
  Residue residual = Residue::none;
  bool residual_first = false;
  bool codes = false;
  int layer = 0;  // of a batch
};

// y of one row of z, in FP64; what the visitor is held to.
std::vector<double> normalised(const Norm& norm, std::vector<double> z, const std::vector<float>& bias,
                               const std::vector<float>& weight, const std::vector<float>& shift,
                               const float* residual) {
  const std::size_t n = z.size(), block = norm.block == 0 ? n : static_cast<std::size_t>(norm.block);
  for (std::size_t c = 0; c < n; ++c) {
    if (norm.vectors) z[c] += bias[c];
    if (norm.residual_first) z[c] += residual[c];
  }
  for (std::size_t begin = 0; begin < n; begin += block) {
    const std::size_t end = std::min(begin + block, n);
    const auto count = static_cast<double>(end - begin);
    double mean = 0, squares = 0;
    if (norm.centred)
      for (std::size_t c = begin; c < end; ++c) mean += z[c] / count;
    for (std::size_t c = begin; c < end; ++c) squares += (z[c] - mean) * (z[c] - mean) / count;
    for (std::size_t c = begin; c < end; ++c) {
      double y = (z[c] - mean) / std::sqrt(squares + 1e-5);
      if (norm.vectors) y *= weight[c];
      if (norm.vectors && norm.centred) y += shift[c];
      z[c] = cuda::activate(static_cast<float>(y), norm.activation) + (norm.residual_first ? 0.0f : residual[c]);
    }
  }
  return z;
}

// 0 where codes and scale are those of values within 1e-5 of the row's largest, else 1.
double error_of_codes(const std::uint8_t* codes, float scale, const std::vector<double>& wanted) {
  double largest = 0;
  for (const double y : wanted) largest = std::max(largest, std::fabs(y));
  if (std::fabs(scale * 448.0 - largest) > 1e-5 * largest) return 1;
  for (std::size_t c = 0; c < wanted.size(); ++c) {
    const double half_step = std::max(std::fabs(wanted[c]) / 16, scale / 1024.0);
    if (!(std::fabs(scale * decode_e4m3(codes[c]) - wanted[c]) <= half_step + 1e-5 * largest)) return 1;
  }
  return 0;
}

// Tile (tile_row, tile_column) of a matrix [rows, cols], 64 x kColumns, as the epilogue visits it; the largest error of
// a valid element, of the largest element.
template <int kColumns, class Instruction>
double error_of(int rows, int cols, int tile_row, int tile_column, const Norm& norm) {
  using Tile = Shape<_64, Int<kColumns>>;
  using Visitor = cuda::NormRows<Shape<_64, Int<kColumns>, _128>>;
  constexpr int kValues = kColumns / 2;  // of a thread
  const auto accumulators =
      make_tiled_copy_C_atom(Copy_Atom<SM90_U32x4_STSM_N, cutlass::half_t>{}, make_tiled_mma(Instruction{}));
  const auto copy = make_tiled_copy_S(Copy_Atom<SM90_U32x4_STSM_N, cutlass::bfloat16_t>{}, accumulators);
  static_assert(cuda::four_lanes_share_rows<std::remove_cv_t<decltype(copy)>>());

  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const auto n = static_cast<std::size_t>(cols), m = static_cast<std::size_t>(rows), ld = n + 3;
  std::vector<float> z(m * n), residual(m * ld, 0.0f);
  const auto layer = static_cast<std::size_t>(norm.layer);  // the last one: its vectors end the memory
  std::vector<float> bias(n), weight(n), shift(n);
  for (float& v : z) v = 3 * normal(random) + 1;
  for (std::size_t c = 0; c < n; ++c)
    bias[c] = normal(random), weight[c] = 1 + 0.1f * normal(random), shift[c] = 0.1f * normal(random);
  const auto of_batch = [&](const std::vector<float>& own) {
    std::vector<float> all(layer * n, std::nanf(""));
    all.insert(all.end(), own.begin(), own.end());
    return all;
  };
  const std::vector<float> biases = of_batch(bias), weights = of_batch(weight), shifts = of_batch(shift);
  std::vector<cutlass::bfloat16_t> narrow(residual.size());
  if (norm.residual != Residue::none)
    for (std::size_t i = 0; i < residual.size(); ++i) {
      narrow[i] = cutlass::bfloat16_t(normal(random));
      residual[i] = static_cast<float>(narrow[i]);
    }
  std::vector<std::uint8_t> codes(m * n);
  std::vector<float> scale(m);
  const typename Visitor::Arguments arguments{norm.vectors ? biases.data() : nullptr,
                                              norm.vectors ? weights.data() : nullptr,
                                              norm.vectors && norm.centred ? shifts.data() : nullptr,
                                              1e-5f,
                                              norm.centred,
                                              norm.block,
                                              norm.activation,
                                              norm.residual == Residue::narrow ? narrow.data() : nullptr,
                                              norm.residual == Residue::wide ? residual.data() : nullptr,
                                              static_cast<std::int64_t>(ld),
                                              norm.residual_first,
                                              norm.codes ? codes.data() : nullptr,
                                              static_cast<std::int64_t>(n),
                                              norm.codes ? scale.data() : nullptr};
  EXPECT_TRUE(Visitor::can_implement(make_shape(rows, cols, 128, norm.layer + 1), arguments));
  std::vector<double> found(64 * kColumns);
  cuda_emulator::run(dim3(1), dim3(128), 0, [&] {
    cuda_emulator::wait_for_previous_kernels();
    const auto thread = copy.get_slice(static_cast<int>(threadIdx.x));
    const auto matrix = make_identity_tensor(make_shape(rows, cols));
    const auto own =
        thread.partition_S(flat_divide(local_tile(matrix, Tile{}, make_coord(tile_row, tile_column)), Tile{}));
    const auto relative = make_coord_tensor(own.layout());
    const auto residue = make_coord(rows, cols) - own(_0{});
    const auto places = thread.partition_S(flat_divide(make_identity_tensor(Tile{}), Tile{}))(_, _, _, 0, 0);
    cutlass::Array<float, kValues> fragment;
    for (int i = 0; i < kValues; ++i) {
      const int r = tile_row * 64 + int(get<0>(places(i))), c = tile_column * kColumns + int(get<1>(places(i)));
      fragment[i] = r < rows && c < cols ? z[static_cast<std::size_t>(r) * n + static_cast<std::size_t>(c)] : 0.0f;
    }
    typename Visitor::template Callbacks<std::remove_cv_t<decltype(relative)>, std::remove_cv_t<decltype(residue)>>
        callbacks(relative, residue, rows, cols, tile_column, norm.layer, &arguments);
    const auto y = callbacks.template visit<float, kValues>(fragment, 0, 0, 0, fragment);
    for (int i = 0; i < kValues; ++i)
      found[static_cast<std::size_t>(int(get<0>(places(i))) * kColumns + int(get<1>(places(i))))] =
          static_cast<float>(y[i]);
  });

  double worst = 0, largest = 1e-30;
  for (int r = 0; r < 64 && tile_row * 64 + r < rows; ++r) {
    const auto row = static_cast<std::size_t>(tile_row * 64 + r);
    const auto from = z.begin() + static_cast<std::ptrdiff_t>(row * n);
    const std::vector<double> wanted =
        normalised(norm, {from, from + cols}, bias, weight, shift, residual.data() + row * ld);
    if (norm.codes) {
      worst = std::max(worst, error_of_codes(codes.data() + row * n, scale[row], wanted));
      continue;
    }
    for (int c = 0; c < kColumns && tile_column * kColumns + c < cols; ++c) {
      const double y = wanted[static_cast<std::size_t>(tile_column * kColumns + c)];
      const double error = std::fabs(y - found[static_cast<std::size_t>(r * kColumns + c)]);
      largest = std::max(largest, std::fabs(y));
      worst = std::isnan(error) ? 1e9 : std::max(worst, error);
    }
  }
  return worst / largest;
}

constexpr std::pair<int, int> kRowsAndTiles[] = {{64, 0}, {5, 0}, {130, 2}};

template <int kColumns, class Instruction>
void expect_norms(std::initializer_list<int> widths) {
  for (const int cols : widths)
    for (const auto& [rows, tile_row] : kRowsAndTiles)
      for (const Norm& norm : {Norm{true, true, Activation::silu},
                               {false, true, Activation::gelu},
                               {true, false, Activation::none, 0, Residue::narrow, true},
                               {false, false, Activation::hardswish, 0, Residue::wide},
                               {true, true, Activation::relu, 0, Residue::narrow},
                               {false, true, Activation::sigmoid, 0, Residue::wide, true},
                               {true, true, Activation::silu, 0, Residue::none, false, false, 2},
                               {true, true, Activation::gelu, 0, Residue::narrow, false, true},
                               {false, false, Activation::none, 64, Residue::none, false, true}})
        EXPECT_LE((error_of<kColumns, Instruction>(rows, cols, tile_row, 0, norm)), 1.0 / 256)
            << cols << " columns, " << rows << " rows, tile " << tile_row;
}

// Blocks of columns, each with statistics of its own, over as many tiles as the matrix has.
template <int kColumns, class Instruction>
void expect_blocks(std::initializer_list<int> blocks) {
  for (const int block : blocks)
    for (const int cols : {kColumns, 2 * kColumns, 2 * kColumns + 8, 3 * kColumns - 72, block + 8})
      for (const auto& [rows, tile_row] : kRowsAndTiles)
        for (int tile = 0; tile * kColumns < cols; ++tile)
          for (const Norm& norm : {Norm{false, false, Activation::hardswish, block},
                                   {false, true, Activation::silu, block, Residue::narrow},
                                   {false, true, Activation::relu, block, Residue::none, false, false, 2},
                                   {false, true, Activation::none, block, Residue::wide, true}})
            EXPECT_LE((error_of<kColumns, Instruction>(rows, cols, tile_row, tile, norm)), 1.0 / 256)
                << "blocks of " << block << ", " << cols << " columns, " << rows << " rows, tile " << tile;
}

using Of128 = MMA_Atom<SM90::GMMA::MMA_64x128x32_F32E4M3E4M3_SS_TN<>>;
using Of256 = MMA_Atom<SM90::GMMA::MMA_64x256x32_F32E4M3E4M3_SS_TN<>>;

TEST(CudaNormVisitor, RowsOf128) { expect_norms<128, Of128>({8, 16, 120, 128}); }
TEST(CudaNormVisitor, RowsOf256) { expect_norms<256, Of256>({8, 200, 256}); }

TEST(CudaNormVisitor, BlocksInATileOf128) { expect_blocks<128, Of128>({64, 128}); }
TEST(CudaNormVisitor, BlocksInATileOf256) { expect_blocks<256, Of256>({64, 128, 256}); }

TEST(CudaNormVisitor, RefusesWhatTheTileCannotHold) {
  using Visitor = cuda::NormRows<Shape<_64, _256, _128>>;
  const auto takes = [](int cols, bool centred, int block) {
    typename Visitor::Arguments arguments{};
    arguments.centred = centred;
    arguments.block = block;
    return Visitor::can_implement(make_shape(5, cols, 128, 1), arguments);
  };
  EXPECT_TRUE(takes(256, true, 0));
  EXPECT_FALSE(takes(264, true, 0));
  EXPECT_TRUE(takes(1000, false, 128));
  EXPECT_FALSE(takes(1000, true, 128));
  EXPECT_FALSE(takes(1000, false, 192));
  EXPECT_FALSE(takes(1000, false, 32));
  EXPECT_FALSE(takes(1000, false, 512));
  std::uint8_t codes[8];
  typename Visitor::Arguments arguments{};
  arguments.codes = codes;
  arguments.block = 64;
  EXPECT_TRUE(Visitor::can_implement(make_shape(5, 256, 128, 1), arguments));
  EXPECT_FALSE(Visitor::can_implement(make_shape(5, 264, 128, 1), arguments));
  EXPECT_FALSE(Visitor::can_implement(make_shape(5, 256, 128, 2), arguments));
}

}  // namespace
}  // namespace octavo::testing
