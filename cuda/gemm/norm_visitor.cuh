// A norm over whole rows inside the GEMM's epilogue: act(norm(z + bias)). The tile must hold every column, and a thread
// must see all that it has of its rows in one visit: the epilogue's own tile is 64 x the tile's n (kernel.cuh).
//
// A warpgroup's sums lie so that a thread has columns 2 * (lane % 4) + {0, 1} + 8 j of rows lane / 4 and lane / 4 + 8
// of its warp's sixteen: four neighbouring lanes hold a row between them. four_lanes_share_rows asks CUTLASS's layout.
#pragma once

#include "activation.hpp"
#include "cutlass/numeric_conversion.h"  // which the next one uses

#include "cutlass/epilogue/fusion/sm90_visitor_tma_warpspecialized.hpp"

namespace octavo::cuda {

// Whether four neighbouring threads of the copy have values of the same two rows and of no other, the first value of
// each in the same one.
template <class TiledCopy>
constexpr bool four_lanes_share_rows() {
  constexpr auto places = TiledCopy::get_layoutS_TV();  // (thread, value) -> place in the copy's tile, column-major
  constexpr int rows = cute::size<0>(typename TiledCopy::Tiler_MN{});
  for (int leader = 0; leader < cute::size<0>(places); leader += 4) {
    const int first = static_cast<int>(places(leader, 0)) % rows;
    int second = -1;
    for (int thread = leader; thread < leader + 4; ++thread) {
      if (static_cast<int>(places(thread, 0)) % rows != first) return false;
      for (int value = 0; value < cute::size<1>(places); ++value) {
        const int row = static_cast<int>(places(thread, value)) % rows;
        if (row == first || row == second) continue;
        if (second >= 0) return false;
        second = row;
      }
    }
  }
  return true;
}

template <class TileShape>
struct NormRows : cutlass::epilogue::fusion::Sm90VisitorImpl<> {
  struct SharedStorage {};
  struct Arguments {
    const float *bias, *weight, *shift;  // [n] or nullptr
    float eps;
    bool centred;  // LayerNorm; else RMSNorm
    Activation activation;
  };
  using Params = Arguments;

  template <class Problem>
  static constexpr Params to_underlying_arguments(Problem const&, Arguments const& args, void*) {
    return args;
  }
  template <class Problem>
  static bool can_implement(Problem const& problem, Arguments const&) {
    return cute::get<1>(problem) <= cute::size<1>(TileShape{});
  }
  template <class Problem>
  static std::size_t get_workspace_size(Problem const&, Arguments const&) {
    return 0;
  }
  template <class Problem>
  static cutlass::Status initialize_workspace(Problem const&, Arguments const&, void*, cudaStream_t,
                                              cutlass::CudaHostAdapter* = nullptr) {
    return cutlass::Status::kSuccess;
  }

  CUTLASS_HOST_DEVICE NormRows() {}
  CUTLASS_HOST_DEVICE NormRows(Params const& p, SharedStorage const&) : params(&p) {}
  Params const* params = nullptr;

  // `coordinates`: of the thread's values, from its first one; `residue`: how far the matrix goes from there.
  template <class Coordinates, class Residue>
  struct Callbacks : cutlass::epilogue::fusion::EmptyConsumerStoreCallbacks {
    Coordinates coordinates;
    Residue residue;
    int columns, first_column;
    Params const* params;

    CUTLASS_DEVICE Callbacks(Coordinates c, Residue r, int n, Params const* p)
        : coordinates(c), residue(r), columns(n), first_column(n - cute::get<1>(r)), params(p) {}

    template <class Accumulator, int kValues>
    CUTLASS_DEVICE cutlass::Array<cutlass::bfloat16_t, kValues> visit(cutlass::Array<Accumulator, kValues> const&,
                                                                      int epi_v, int epi_m, int epi_n,
                                                                      cutlass::Array<float, kValues> const& product) {
      static_assert(kValues == cute::size<1>(TileShape{}) / 2, "a thread must see its two rows in one visit");
      cutlass::Array<float, kValues> z = product;
      const auto at = coordinates(cute::_, cute::_, cute::_, epi_m, epi_n);
      const auto column = [&](int i) { return static_cast<int>(cute::get<1>(at(i))); };
      const auto row = [&](int i) { return cute::get<0>(at(i)) == 0 ? 0 : 1; };
      // n is a multiple of 8, as are the columns that the four lanes start a group at: one answer for all of them,
      // which needs no register of each.
      const auto inside = [&](int i) { return column(i) / 8 * 8 < columns; };

      float sum[2] = {0.0f, 0.0f}, squares[2] = {0.0f, 0.0f};
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kValues; ++i) {
        if (params->bias != nullptr && inside(i)) z[i] += params->bias[first_column + column(i)];
        if (inside(i)) sum[row(i)] += z[i];
      }
      const float count = static_cast<float>(columns);
      float mean[2], inverse[2];
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < 2; ++r) mean[r] = params->centred ? over_lanes(sum[r]) / count : 0.0f;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kValues; ++i) {
        z[i] -= mean[row(i)];
        if (inside(i)) squares[row(i)] += z[i] * z[i];
      }
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < 2; ++r) inverse[r] = 1.0f / sqrtf(over_lanes(squares[r]) / count + params->eps);
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kValues; ++i) {
        z[i] *= inverse[row(i)];
        if (params->weight != nullptr && inside(i)) z[i] *= params->weight[first_column + column(i)];
        if (params->shift != nullptr && inside(i)) z[i] += params->shift[first_column + column(i)];
      }
      activate_all<kValues>(z, params->activation);
      return cutlass::NumericArrayConverter<cutlass::bfloat16_t, float, kValues>{}(z);
    }

    // The four lanes that share a row.
    CUTLASS_DEVICE static float over_lanes(float value) {
      value += __shfl_xor_sync(0xffffffffu, value, 1);
      return value + __shfl_xor_sync(0xffffffffu, value, 2);
    }
  };

  template <bool kReferenceSource, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(
      cutlass::epilogue::fusion::detail::ConsumerStoreArgs<Args...> const& args) {
    static_assert(four_lanes_share_rows<std::remove_cv_t<decltype(args.tiled_copy)>>());
    const int n = cute::get<1>(args.problem_shape_mnkl);
    return Callbacks<decltype(args.tCcD), decltype(args.residue_tCcD)>(args.tCcD, args.residue_tCcD, n, params);
  }
};

}  // namespace octavo::cuda
