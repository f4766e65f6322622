// A row of tiles.hpp as a CUTLASS kernel: types, the check of a problem, the launch. Instantiated in this folder's .cu
// files, a few kernels of one schedule in each, because most of a compilation is parsing CUTLASS.
#pragma once

#include <cstring>
#include <type_traits>

#include "cute/tensor.hpp"
#include "cutlass/cutlass.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "device/device.hpp"
#include "gemm/epilogue.cuh"
#include "gemm/gemm.hpp"

namespace octavo::cuda {

template <Product kProduct, bool kOfX>
using OperandType = std::conditional_t<
    kProduct == Product::bf16, cutlass::bfloat16_t,
    std::conditional_t<kProduct == Product::e5m2 && kOfX, cutlass::float_e5m2_t, cutlass::float_e4m3_t>>;

template <Schedule kSchedule, bool kFast>
struct ScheduleTypes {
  using Mainloop = std::conditional_t<kFast, cutlass::gemm::KernelTmaWarpSpecializedFP8FastAccum,
                                      cutlass::gemm::KernelTmaWarpSpecialized>;
  using Epilogue = cutlass::epilogue::TmaWarpSpecialized;
};
template <bool kFast>
struct ScheduleTypes<Schedule::pingpong, kFast> {
  using Mainloop = std::conditional_t<kFast, cutlass::gemm::KernelTmaWarpSpecializedPingpongFP8FastAccum,
                                      cutlass::gemm::KernelTmaWarpSpecializedPingpong>;
  using Epilogue = cutlass::epilogue::TmaWarpSpecialized;
};
template <bool kFast>
struct ScheduleTypes<Schedule::cooperative, kFast> {
  using Mainloop = std::conditional_t<kFast, cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8FastAccum,
                                      cutlass::gemm::KernelTmaWarpSpecializedCooperative>;
  using Epilogue = cutlass::epilogue::TmaWarpSpecializedCooperative;
};

// Behind a norm d leaves as BF16 through shared memory, whatever else the norm writes. Where it writes codes, d is one
// row of scratch: the memory accelerator drops what lies outside the matrix that it was told of.
template <class Base>
struct DroppingEpilogue : Base {
  struct Arguments : Base::Arguments {
    bool drops = false;
  };
  using Base::Base;

  template <class Problem>
  static constexpr typename Base::Params to_underlying_arguments(Problem problem, Arguments const& args, void* memory) {
    if (args.drops) cute::get<0>(problem) = 1;
    return Base::to_underlying_arguments(problem, args, memory);
  }
};

// Scales of blocks: of x one per row and 128 of K, rows side by side; of w one per 128 x 128, along K side by side.
using BlockScales = cutlass::detail::Sm90BlockwiseScaleConfig<1, 128, 128, cute::GMMA::Major::MN, cute::GMMA::Major::K>;

template <int kIndex>
struct Kernel {
  static constexpr Tile kTile = kTiles[kIndex];
  using Shape = cute::Shape<cute::Int<kTile.m>, cute::Int<kTile.n>, cute::Int<kTile.k>>;
  using Cluster = cute::Shape<cute::Int<kTile.cluster_m>, cute::_1, cute::_1>;
  static constexpr bool kBlocks = kTile.product == Product::e4m3_block;
  using Types = ScheduleTypes<kTile.schedule, kTile.product == Product::e4m3_fast>;
  using MainloopSchedule = std::conditional_t<kBlocks, cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8Blockwise,
                                              typename Types::Mainloop>;
  static_assert(!kBlocks || (kTile.schedule == Schedule::cooperative && !kTile.swap));
  using Tree = EpilogueTree<kIndex, Shape>;

  // The kernel's first operand; with `swap` it is w.
  using A = OperandType<kTile.product, !kTile.swap>;
  using B = OperandType<kTile.product, kTile.swap>;
  static constexpr Major kMajorA = kTile.swap ? kTile.w_major : kTile.x_major;
  static constexpr Major kMajorB = kTile.swap ? kTile.x_major : kTile.w_major;
  using LayoutA = std::conditional_t<kMajorA == Major::k, cutlass::layout::RowMajor, cutlass::layout::ColumnMajor>;
  using LayoutB = std::conditional_t<kMajorB == Major::k, cutlass::layout::ColumnMajor, cutlass::layout::RowMajor>;
  static constexpr int kAlign = alignment_of(kTile.product);
  template <class Layout, class Scales>
  using WithScales = std::conditional_t<kBlocks, cute::tuple<Layout, Scales>, Layout>;

  using D = std::conditional_t<kTile.store == Store::direct, void, cutlass::bfloat16_t>;
  using EpilogueTile = std::conditional_t<kTile.store == Store::norm, cute::Shape<cute::_64, cute::Int<kTile.n>>,
                                          cutlass::epilogue::collective::EpilogueTileAuto>;
  using Whole = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Shape, Cluster, EpilogueTile, float, float, void,
      typename Tree::Layout, 8, D, typename Tree::Layout, 8, typename Types::Epilogue,
      typename Tree::Tree>::CollectiveOp;
  using Epilogue = std::conditional_t<kTile.store == Store::norm, DroppingEpilogue<Whole>, Whole>;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, A, WithScales<LayoutA, BlockScales::LayoutSFA>, kAlign, B,
      WithScales<LayoutB, BlockScales::LayoutSFB>, kAlign, float, Shape, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      MainloopSchedule>::CollectiveOp;
  using Universal = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop, Epilogue>;
  using Adapter = cutlass::gemm::device::GemmUniversalAdapter<Universal>;

  // The mainloop's arguments: its operands, and the scales of their blocks where it multiplies by them.
  template <class Operands>
  static typename Mainloop::Arguments with_scales(const Gemm& g, Operands operands) {
    if constexpr (kBlocks) {
      const auto shape = cute::make_shape(static_cast<int>(block_scale_ld(g.m)), g.n, g.k, 1);
      return operands(g.x_scale, BlockScales::tile_atom_to_shape_SFA(shape), g.w_scale,
                      BlockScales::tile_atom_to_shape_SFB(shape));
    } else {
      return operands();
    }
  }

  // `row`: tile.n elements of scratch, of a norm that writes codes.
  static typename Adapter::Arguments arguments(const Gemm& g, int sm_count, void* row = nullptr) {
    const void *a = g.x, *b = g.w;
    std::int64_t lda = g.ldx, ldb = g.ldw, batch_a = g.x_batch, batch_b = g.w_batch;
    if constexpr (kTile.swap) {
      std::swap(a, b);
      std::swap(lda, ldb);
      std::swap(batch_a, batch_b);
    }
    const int m = kTile.swap ? g.n : g.m, n = kTile.swap ? g.m : g.n;
    const auto operands = [&](auto... scales) -> typename Mainloop::Arguments {
      return {static_cast<const A*>(a), matrix_stride<typename Universal::StrideA>(lda, batch_a),
              static_cast<const B*>(b), matrix_stride<typename Universal::StrideB>(ldb, batch_b), scales...};
    };
    const typename Whole::Arguments whole{
        Tree::arguments(g), nullptr, {}, {}, matrix_stride<typename Universal::StrideD>(g.ldd, g.d_batch)};
    typename Adapter::Arguments found{cutlass::gemm::GemmUniversalMode::kGemm,
                                      cute::make_shape(m, n, g.k, g.batch),
                                      with_scales(g, operands),
                                      {whole}};
    if constexpr (kTile.store != Store::direct) found.epilogue.ptr_D = static_cast<cutlass::bfloat16_t*>(g.d);
    if constexpr (kTile.store == Store::norm) {
      found.epilogue.drops = g.d_dtype == DType::e4m3;
      if (found.epilogue.drops) found.epilogue.ptr_D = static_cast<cutlass::bfloat16_t*>(row);
    }
    found.hw_info.sm_count = sm_count;  // else every call asks the runtime
    found.hw_info.max_active_clusters = sm_count / kTile.cluster_m;
    return found;
  }
};

template <int kIndex>
Status accepts_tile(const Gemm& g) {
  using Adapter = typename Kernel<kIndex>::Adapter;
  const auto status = Adapter::can_implement(Kernel<kIndex>::arguments(g, 1));
  if (status == cutlass::Status::kSuccess) return {};
  return Status::unsupported(std::string(kTiles[kIndex].name) + ": " + cutlass::cutlassGetStatusString(status));
}

// A tensor map that the driver refused is left as zeros, and CuTe only prints so.
template <class Copy>
bool has_map(const Copy& copy) {
  constexpr cute::TmaDescriptor kNone{};
  return std::memcmp(copy.get_tma_descriptor(), &kNone, sizeof(kNone)) != 0;
}

template <int kIndex>
Status prepare_tile(const Gemm& g, void* row, StreamBuffer& workspace, cudaStream_t stream, GemmParams& params) {
  using Params = typename Kernel<kIndex>::Adapter::Params;
  static_assert(sizeof(Params) <= sizeof(params.bytes) && alignof(Params) <= alignof(GemmParams));
  static_assert(std::is_trivially_copyable_v<Params>);
  if (Status status = accepts_tile<kIndex>(g); !status.ok()) return status;
  typename Kernel<kIndex>::Adapter gemm;
  const auto arguments = Kernel<kIndex>::arguments(g, device_info().multiprocessors, row);
  if (Status s = workspace.allocate(gemm.get_workspace_size(arguments)); !s.ok()) return s;
  if (const auto status = gemm.initialize(arguments, workspace.template as<void>(), stream);
      status != cutlass::Status::kSuccess)
    return {Code::internal, std::string(kTiles[kIndex].name) + ": " + cutlass::cutlassGetStatusString(status)};
  bool has_maps = has_map(gemm.params().mainloop.tma_load_a) && has_map(gemm.params().mainloop.tma_load_b);
  if constexpr (kTiles[kIndex].store != Store::direct)
    has_maps = has_maps && has_map(gemm.params().epilogue.tma_store_d);
  if (!has_maps)
    return {Code::internal, std::string(kTiles[kIndex].name) + ": the driver refused a tensor map (standard error)"};
  std::memcpy(params.bytes, &gemm.params(), sizeof(Params));
  return {};
}

template <int kIndex>
Status launch_tile(const GemmParams& params, cudaStream_t stream, bool early) {
  using Adapter = typename Kernel<kIndex>::Adapter;
  typename Adapter::Params own;
  std::memcpy(&own, params.bytes, sizeof(own));
  if (const auto status = Adapter::run(own, stream, nullptr, early); status != cutlass::Status::kSuccess)
    return {Code::internal, std::string(kTiles[kIndex].name) + ": " + cutlass::cutlassGetStatusString(status)};
  return checked(cudaGetLastError(), kTiles[kIndex].name);
}

// In a .cu: OCTAVO_TILE(name) compiles the row of that name.
#define OCTAVO_TILE(name)                                                                                       \
  static_assert(tile_index(name) >= 0, "tiles.hpp has no row of this name");                                    \
  template Status accepts_tile<tile_index(name)>(const Gemm&);                                                  \
  template Status prepare_tile<tile_index(name)>(const Gemm&, void*, StreamBuffer&, cudaStream_t, GemmParams&); \
  template Status launch_tile<tile_index(name)>(const GemmParams&, cudaStream_t, bool)

}  // namespace octavo::cuda
