// What every kernel does behind its product, as trees of CUTLASS's epilogue visitors:
//   scaled = (x_scale * w_scale) * sums;  d = act(scaled + bias [+ residual]) [+ residual]
// What a call does not want is a null pointer or a switch, not another kernel. The type of d is one where it leaves
// through shared memory (Store::tma, Store::norm) and a switch where it is stored directly.
#pragma once

#include "activation.hpp"
#include "cutlass/epilogue/fusion/operations.hpp"
#include "cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp"
#include "gemm/norm_visitor.cuh"
#include "gemm/problem.hpp"
#include "gemm/tiles.hpp"

namespace octavo::cuda {

namespace fusion = cutlass::epilogue::fusion;
constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;

struct FinishArguments {
  Activation activation;
  bool residual_first;
};

// The last step, on all values that a thread has of one part of the tile: the switch is taken once for all of them.
template <class Values>
struct Finish {
  using Arguments = FinishArguments;

  CUTLASS_DEVICE Values operator()(Values z, Values const& bias, Values const& residual, Arguments const& a) const {
    return finish(z, bias, residual, a);
  }

  // Residuals in FP32 and in BF16; the one that is not there reads as zeros.
  CUTLASS_DEVICE Values operator()(Values z, Values const& bias, Values const& wide, Values const& narrow,
                                   Arguments const& a) const {
    Values residual;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Values::kElements; ++i) residual[i] = wide[i] + narrow[i];
    return finish(z, bias, residual, a);
  }

  CUTLASS_DEVICE static Values finish(Values z, Values const& bias, Values const& residual, Arguments const& a) {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Values::kElements; ++i) z[i] += a.residual_first ? bias[i] + residual[i] : bias[i];
    activate_all<Values::kElements>(z, a.activation);
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Values::kElements; ++i) z[i] += a.residual_first ? 0.0f : residual[i];
    return z;
  }
};

// Along the kernel's own rows and columns: with `swap` the kernel's rows are the problem's columns.
template <class Shape>
using PerRow = fusion::Sm90ColBroadcast<0, Shape, float, float, cute::Stride<cute::_1, cute::_0, std::int64_t>>;
template <class Shape>
using PerColumn = fusion::Sm90RowBroadcast<0, Shape, float, float, cute::Stride<cute::_0, cute::_1, std::int64_t>>;

template <class Shape>
struct Scaled {
  using Multiply = fusion::Sm90Compute<cutlass::multiplies, float, float, kRound>;
  using Inner = fusion::Sm90EVT<Multiply, PerColumn<Shape>, fusion::Sm90AccFetch>;
  using Tree = fusion::Sm90EVT<Multiply, PerRow<Shape>, Inner>;

  static typename Tree::Arguments arguments(const float* per_row, std::int64_t row_batch, const float* per_column,
                                            std::int64_t column_batch) {
    const typename Inner::Arguments inner{{per_column, 1.0f, {cute::_0{}, cute::_1{}, column_batch}}, {}, {}};
    return {{per_row, 1.0f, {cute::_1{}, cute::_0{}, row_batch}}, inner, {}};
  }
};

// Sums that were multiplied by their blocks' scales on the way.
struct ScaledAlready {
  using Tree = fusion::Sm90AccFetch;
  static typename Tree::Arguments arguments(const float*, std::int64_t, const float*, std::int64_t) { return {}; }
};

// A residual or an output in memory, read or written element by element, so that any leading dimension will do.
template <class Element, class Layout>
using LoadMatrix = fusion::Sm90AuxLoad<0, void, Element, Layout, void, void, 1>;
template <class Element, class Layout>
using StoreMatrix = fusion::Sm90AuxStore<0, void, Element, kRound, Layout, void, void, 1>;

template <class Stride>
Stride matrix_stride(std::int64_t ld, std::int64_t batch = 0) {
  Stride stride{};
  cute::get<2>(stride) = batch;
  if constexpr (cute::is_static_v<decltype(cute::get<1>(stride))>)
    cute::get<0>(stride) = ld;
  else
    cute::get<1>(stride) = ld;
  return stride;
}

template <int kIndex, class Shape>
struct EpilogueTree {
  static constexpr Tile kTile = kTiles[kIndex];
  using Layout = std::conditional_t<kTile.swap, cutlass::layout::ColumnMajor, cutlass::layout::RowMajor>;
  using Bias = std::conditional_t<kTile.swap, PerRow<Shape>, PerColumn<Shape>>;
  using Narrow = LoadMatrix<cutlass::bfloat16_t, Layout>;
  using Wide = LoadMatrix<float, Layout>;
  template <class Element>
  using Last = fusion::Sm90Compute<Finish, Element, float, kRound>;
  static constexpr bool kDirect = kTile.store == Store::direct;
  static constexpr bool kNorm = kTile.store == Store::norm;

  using Scales = std::conditional_t<kTile.product == Product::e4m3_block, ScaledAlready, Scaled<Shape>>;
  using TmaTree = fusion::Sm90EVT<Last<cutlass::bfloat16_t>, typename Scales::Tree, Bias, Narrow>;
  using Computed = fusion::Sm90EVT<Last<float>, typename Scales::Tree, Bias, Wide, Narrow>;
  using StoreWide = StoreMatrix<float, Layout>;
  using StoreNarrow = StoreMatrix<cutlass::bfloat16_t, Layout>;
  using Stored = fusion::Sm90EVT<StoreWide, Computed>;
  using DirectTree = fusion::Sm90EVT<StoreNarrow, Stored>;
  using NormTree = fusion::Sm90EVT<NormRows<Shape>, typename Scales::Tree>;
  using Tree = std::conditional_t<kDirect, DirectTree, std::conditional_t<kNorm, NormTree, TmaTree>>;

  static typename Tree::Arguments arguments(const Gemm& g) {
    const auto scaled = kTile.swap ? Scales::arguments(g.w_scale, g.column_batch, g.x_scale, g.row_batch)
                                   : Scales::arguments(g.x_scale, g.row_batch, g.w_scale, g.column_batch);
    const bool is_narrow = g.residual.dtype == DType::bf16;
    const auto* narrow = is_narrow ? static_cast<const cutlass::bfloat16_t*>(g.residual.data) : nullptr;
    const auto* wide = is_narrow ? nullptr : static_cast<const float*>(g.residual.data);
    if constexpr (kNorm) {
      return {scaled,
              {g.bias, g.norm_weight, g.norm_bias, g.eps, g.norm == NormKind::layer, g.norm_block, g.activation, narrow,
               wide, g.residual.row_stride, g.residual_first,
               g.d_dtype == DType::e4m3 ? static_cast<std::uint8_t*>(g.d) : nullptr, g.ldd, g.d_scale}};
    } else {
      const typename Bias::Arguments bias{g.bias, 0.0f, {{}, {}, g.column_batch}};  // of a row or a column
      const typename Narrow::Arguments residual{narrow, cutlass::bfloat16_t(0.0f),
                                                matrix_stride<typename Narrow::StrideMNL>(g.residual.row_stride)};
      const FinishArguments finish{g.activation, g.residual_first};
      if constexpr (!kDirect) {
        return {scaled, bias, residual, finish};
      } else {
        const typename Wide::Arguments wide_residual{wide, 0.0f,
                                                     matrix_stride<typename Wide::StrideMNL>(g.residual.row_stride)};
        const auto stride = matrix_stride<typename StoreWide::StrideMNL>(g.ldd, g.d_batch);
        const bool d_narrow = g.d_dtype == DType::bf16;
        const typename Computed::Arguments computed(scaled, bias, wide_residual, residual, finish);
        const typename Stored::Arguments stored{computed, {d_narrow ? nullptr : static_cast<float*>(g.d), stride}};
        return {stored, {d_narrow ? static_cast<cutlass::bfloat16_t*>(g.d) : nullptr, stride}};
      }
    }
  }
};

}  // namespace octavo::cuda
