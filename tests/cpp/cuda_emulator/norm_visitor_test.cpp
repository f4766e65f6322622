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

namespace octavo::testing {
namespace {

using namespace cute;

struct Norm {
  bool centred, vectors;
  Activation activation;
};

// Tile `tile_row` of a matrix [rows, cols], 64 x kColumns, as the epilogue visits it; the largest error of a valid
// element, of the largest element.
template <int kColumns, class Instruction>
double error_of(int rows, int cols, int tile_row, const Norm& norm) {
  using Tile = Shape<_64, Int<kColumns>>;
  using Visitor = cuda::NormRows<Shape<_64, Int<kColumns>, _128>>;
  constexpr int kValues = kColumns / 2;  // of a thread
  const auto accumulators =
      make_tiled_copy_C_atom(Copy_Atom<SM90_U32x4_STSM_N, cutlass::half_t>{}, make_tiled_mma(Instruction{}));
  const auto copy = make_tiled_copy_S(Copy_Atom<SM90_U32x4_STSM_N, cutlass::bfloat16_t>{}, accumulators);
  static_assert(cuda::four_lanes_share_rows<std::remove_cv_t<decltype(copy)>>());

  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const auto n = static_cast<std::size_t>(cols);
  std::vector<float> z(64 * kColumns), bias(n), weight(n), shift(n);
  std::vector<double> found(z.size());
  for (float& v : z) v = 3 * normal(random) + 1;
  for (std::size_t c = 0; c < n; ++c)
    bias[c] = normal(random), weight[c] = 1 + 0.1f * normal(random), shift[c] = 0.1f * normal(random);
  const bool shifted = norm.vectors && norm.centred;
  const typename Visitor::Arguments arguments{norm.vectors ? bias.data() : nullptr,
                                              norm.vectors ? weight.data() : nullptr,
                                              shifted ? shift.data() : nullptr,
                                              1e-5f,
                                              norm.centred,
                                              norm.activation};
  const bool ran = cuda_emulator::run(dim3(1), dim3(128), 0, [&] {
    const auto thread = copy.get_slice(static_cast<int>(threadIdx.x));
    const auto matrix = make_identity_tensor(make_shape(rows, cols));
    const auto own = thread.partition_S(flat_divide(local_tile(matrix, Tile{}, make_coord(tile_row, 0)), Tile{}));
    const auto relative = make_coord_tensor(own.layout());
    const auto residue = make_coord(rows, cols) - own(_0{});
    const auto places = thread.partition_S(flat_divide(make_identity_tensor(Tile{}), Tile{}))(_, _, _, 0, 0);
    const auto at = [&](int i) {
      return static_cast<std::size_t>(int(get<0>(places(i))) * kColumns + int(get<1>(places(i))));
    };
    cutlass::Array<float, kValues> fragment;
    for (int i = 0; i < kValues; ++i) fragment[i] = z[at(i)];
    typename Visitor::template Callbacks<std::remove_cv_t<decltype(relative)>, std::remove_cv_t<decltype(residue)>>
        callbacks(relative, residue, cols, &arguments);
    const auto y = callbacks.template visit<float, kValues>(fragment, 0, 0, 0, fragment);
    for (int i = 0; i < kValues; ++i) found[at(i)] = static_cast<float>(y[i]);
  });
  EXPECT_TRUE(ran);

  double worst = 0, largest = 1e-30;
  for (int r = 0; r < 64 && tile_row * 64 + r < rows; ++r) {
    std::vector<double> v(n);
    double mean = 0, squares = 0;
    for (std::size_t c = 0; c < n; ++c)
      v[c] = z[static_cast<std::size_t>(r * kColumns) + c] + (norm.vectors ? bias[c] : 0);
    if (norm.centred)
      for (const double x : v) mean += x / cols;
    for (const double x : v) squares += (x - mean) * (x - mean) / cols;
    for (std::size_t c = 0; c < n; ++c) {
      double y = (v[c] - mean) / std::sqrt(squares + 1e-5) * (norm.vectors ? weight[c] : 1) + (shifted ? shift[c] : 0);
      y = cuda::activate(static_cast<float>(y), norm.activation);
      largest = std::max(largest, std::fabs(y));
      worst = std::max(worst, std::fabs(y - found[static_cast<std::size_t>(r * kColumns) + c]));
    }
  }
  return worst / largest;
}

template <int kColumns, class Instruction>
void expect_norms(std::initializer_list<int> widths) {
  for (const int cols : widths)
    for (const auto& [rows, tile_row] : {std::pair{64, 0}, {5, 0}, {130, 2}})
      for (const Norm& norm : {Norm{true, true, Activation::silu},
                               {false, true, Activation::gelu},
                               {true, false, Activation::none},
                               {false, false, Activation::hardswish},
                               {true, true, Activation::relu},
                               {false, true, Activation::sigmoid}})
        EXPECT_LE((error_of<kColumns, Instruction>(rows, cols, tile_row, norm)), 1.0 / 256)
            << cols << " columns, " << rows << " rows, tile " << tile_row;
}

TEST(CudaNormVisitor, RowsOf128) {
  expect_norms<128, MMA_Atom<SM90::GMMA::MMA_64x128x32_F32E4M3E4M3_SS_TN<>>>({8, 16, 120, 128});
}
TEST(CudaNormVisitor, RowsOf192) {
  expect_norms<192, MMA_Atom<SM90::GMMA::MMA_64x192x32_F32E4M3E4M3_SS_TN<>>>({8, 136, 192});
}
TEST(CudaNormVisitor, RowsOf256) {
  expect_norms<256, MMA_Atom<SM90::GMMA::MMA_64x256x32_F32E4M3E4M3_SS_TN<>>>({8, 200, 256});
}

}  // namespace
}  // namespace octavo::testing
