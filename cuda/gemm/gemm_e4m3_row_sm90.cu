// Row-wise scaled E4M3 GEMM for Hopper. Tile 64x128x128, ping-pong, products promoted to FP32 every 128 of K: the
// work-horse for M > 64 and N of 65..384 (cutlass-facts 12, row 12). Two instantiations, one per output type: D's type
// is a template argument of the TMA store.
#include "cute/tensor.hpp"
#include "cutlass/cutlass.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/epilogue/fusion/operations.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "cutlass/util/packed_stride.hpp"
#include "device/device.hpp"
#include "kernels.hpp"

namespace octavo::cuda {
namespace {

using cute::_0;
using cute::_1;

template <class ElementD>
struct Kernel {
  using E4m3 = cutlass::float_e4m3_t;
  using Tile = cute::Shape<cute::_64, cute::_128, cute::_128>;
  using Cluster = cute::Shape<_1, _1, _1>;
  static constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;
  static constexpr int kAlignD = 16 / sizeof(ElementD);

  using RowScale = cutlass::epilogue::fusion::Sm90ColBroadcast<0, Tile, float, float, cute::Stride<_1, _0, _0>>;
  using ColumnScale = cutlass::epilogue::fusion::Sm90RowBroadcast<0, Tile, float, float, cute::Stride<_0, _1, _0>>;
  using Scaled = cutlass::epilogue::fusion::Sm90EVT<
      cutlass::epilogue::fusion::Sm90Compute<cutlass::multiplies, float, float, kRound>, ColumnScale,
      cutlass::epilogue::fusion::Sm90AccFetch>;
  using Fusion = cutlass::epilogue::fusion::Sm90EVT<
      cutlass::epilogue::fusion::Sm90Compute<cutlass::multiplies, ElementD, float, kRound>, RowScale, Scaled>;

  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, cutlass::layout::RowMajor, kAlignD, ElementD,
      cutlass::layout::RowMajor, kAlignD, cutlass::epilogue::TmaWarpSpecialized, Fusion>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, E4m3, cutlass::layout::RowMajor, 16, E4m3,
      cutlass::layout::ColumnMajor, 16, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      cutlass::gemm::KernelTmaWarpSpecializedPingpong>::CollectiveOp;
  using Universal = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop, Epilogue>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Universal>;

  static Status run(const GemmE4m3Row& p) {
    const auto shape = cute::make_shape(p.m, p.n, p.k, 1);
    const auto stride_x =
        cutlass::make_cute_packed_stride(typename Universal::StrideA{}, cute::make_shape(p.m, p.k, 1));
    const auto stride_w =
        cutlass::make_cute_packed_stride(typename Universal::StrideB{}, cute::make_shape(p.n, p.k, 1));
    const auto stride_d =
        cutlass::make_cute_packed_stride(typename Universal::StrideD{}, cute::make_shape(p.m, p.n, 1));
    typename Gemm::Arguments arguments{
        cutlass::gemm::GemmUniversalMode::kGemm,
        shape,
        {static_cast<const E4m3*>(p.x), stride_x, static_cast<const E4m3*>(p.w), stride_w},
        {{{p.x_scale}, {{p.w_scale}, {}, {}}, {}}, nullptr, {}, static_cast<ElementD*>(p.d), stride_d}};
    arguments.hw_info.sm_count = device_info().multiprocessors;
    Gemm gemm;
    if (const auto status = gemm.can_implement(arguments); status != cutlass::Status::kSuccess)
      return Status::unsupported(std::string("gemm_e4m3_row_sm90: ") + cutlass::cutlassGetStatusString(status));
    StreamBuffer workspace(p.stream);
    if (Status status = workspace.allocate(Gemm::get_workspace_size(arguments)); !status.ok()) return status;
    if (const auto status = gemm.run(arguments, workspace.as<void>(), p.stream); status != cutlass::Status::kSuccess)
      return {Code::internal, std::string("gemm_e4m3_row_sm90: ") + cutlass::cutlassGetStatusString(status)};
    return checked(cudaGetLastError(), "gemm_e4m3_row_sm90");
  }
};

}  // namespace

Status gemm_e4m3_row_sm90(const GemmE4m3Row& problem) {
  return problem.d_dtype == DType::bf16 ? Kernel<cutlass::bfloat16_t>::run(problem) : Kernel<float>::run(problem);
}

}  // namespace octavo::cuda
