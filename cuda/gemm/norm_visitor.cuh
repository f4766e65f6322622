// A norm inside the GEMM's epilogue: act(norm(z + bias [+ residual])) [+ residual]. Statistics are those of whole rows,
// which the tile must hold, or of blocks of columns that divide the tile, with any number of columns. Rows that the
// tile holds may leave as E4M3 codes with a scale. A thread must see all that it has of its rows in one visit: the
// epilogue's own tile is 64 x the tile's n (kernel.cuh).
//
// A warpgroup's sums lie so that a thread has columns 2 * (lane % 4) + {0, 1} + 8 j of rows lane / 4 and lane / 4 + 8
// of its warp's sixteen: four neighbouring lanes hold a row between them. four_lanes_share_rows asks CUTLASS's layout.
#pragma once

#include "activation.hpp"
#include "cutlass/numeric_conversion.h"  // which the next one uses

#include "cutlass/epilogue/fusion/sm90_visitor_tma_warpspecialized.hpp"
#include "gemm/tiles.hpp"
#include "quantize/codes.cuh"

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

// Sums over parts of kNormStep columns are what every block of columns is made of.
template <class TileShape>
struct NormRows : cutlass::epilogue::fusion::Sm90VisitorImpl<> {
  static constexpr int kTileColumns = cute::size<1>(TileShape{}), kParts = kTileColumns / kNormStep;

  struct SharedStorage {};
  struct Arguments {
    const float *bias, *weight, *shift;  // [n] or nullptr
    float eps;
    bool centred;  // LayerNorm of whole rows; else RMSNorm
    int block;     // columns that share a mean square; 0: all
    Activation activation;
    const cutlass::bfloat16_t* narrow;  // the residual, or in FP32; nullptr: none
    const float* wide;
    std::int64_t residual_ld;
    bool residual_first;
    std::uint8_t* codes;  // [m, n] instead of d, rows codes_ld apart, multiples of 8; nullptr: not wanted
    std::int64_t codes_ld;
    float* scale;  // [m], of codes
  };
  using Params = Arguments;

  template <class Problem>
  static constexpr Params to_underlying_arguments(Problem const&, Arguments const& args, void*) {
    return args;
  }
  template <class Problem>
  static bool can_implement(Problem const& problem, Arguments const& args) {
    if ((args.block == 0 || args.codes != nullptr) && cute::get<1>(problem) > kTileColumns) return false;
    const bool one_product_only = args.codes != nullptr || args.narrow != nullptr || args.wide != nullptr;
    if (cute::get<3>(problem) > 1 && one_product_only) return false;
    return args.block == 0 || (!args.centred && args.block % kNormStep == 0 && kTileColumns % args.block == 0);
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
    int rows;          // of the matrix
    int first_column;  // of a batch, whose vectors lie side by side, counted from the first layer's
    int columns;       // of the matrix, from the tile's first
    Params const* params;

    CUTLASS_DEVICE Callbacks(Coordinates c, Residue r, int m, int n, int tile, int layer, Params const* p)
        : coordinates(c),
          residue(r),
          rows(m),
          first_column(n * (layer + 1) - cute::get<1>(r)),
          columns(n - tile * kTileColumns),
          params(p) {}

    template <class Accumulator, int kValues>
    CUTLASS_DEVICE cutlass::Array<cutlass::bfloat16_t, kValues> visit(cutlass::Array<Accumulator, kValues> const&,
                                                                      int epi_v, int epi_m, int epi_n,
                                                                      cutlass::Array<float, kValues> const& product) {
      static_assert(kValues == kTileColumns / 2, "a thread must see its two rows in one visit");
      cutlass::Array<float, kValues> z = product;
      const auto at = coordinates(cute::_, cute::_, cute::_, epi_m, epi_n);
      const auto column = [&](int i) { return static_cast<int>(cute::get<1>(at(i))); };
      const auto row = [&](int i) { return cute::get<0>(at(i)) == 0 ? 0 : 1; };
      // n is a multiple of 8, as are the columns that the four lanes start a group at: one answer for all of them,
      // which needs no register of each.
      const auto inside = [&](int i) { return column(i) / 8 * 8 < columns; };
      const auto add_residual = [&](auto const* data) {
        if (data == nullptr) return;
        data += first_row() * params->residual_ld + first_column;
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < kValues; ++i)
          if (inside(i) && cute::get<0>(at(i)) < cute::get<0>(residue))
            z[i] += static_cast<float>(data[cute::get<0>(at(i)) * params->residual_ld + column(i)]);
      };
      const auto add_residuals = [&] {
        add_residual(params->narrow);
        add_residual(params->wide);
      };

      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kValues; ++i)
        if (params->bias != nullptr && inside(i)) z[i] += params->bias[first_column + column(i)];
      if (params->residual_first) add_residuals();
      if (params->centred) {
        float sum[2] = {0.0f, 0.0f};
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < kValues; ++i)
          if (inside(i)) sum[row(i)] += z[i];
        CUTLASS_PRAGMA_UNROLL
        for (int r = 0; r < 2; ++r) sum[r] = over_lanes(sum[r]) / static_cast<float>(columns);
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < kValues; ++i) z[i] -= sum[row(i)];
      }
      float inverse[2][kParts] = {};  // of the root of the mean square
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kValues; ++i)
        if (inside(i)) inverse[row(i)][column(i) / kNormStep] += z[i] * z[i];
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < 2; ++r) invert(inverse[r]);
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kValues; ++i) {
        z[i] *= inverse[row(i)][column(i) / kNormStep];
        if (params->weight != nullptr && inside(i)) z[i] *= params->weight[first_column + column(i)];
        if (params->shift != nullptr && inside(i)) z[i] += params->shift[first_column + column(i)];
      }
      // In parts: a branch between them keeps the compiler from having steps of too many values under way.
      constexpr int kTogether = 32;
      CUTLASS_PRAGMA_UNROLL
      for (int first = 0; first < kValues; first += kTogether) {
        cutlass::Array<float, kTogether> part;
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < kTogether; ++i) part[i] = z[first + i];
        activate_all<kTogether>(part, params->activation);
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < kTogether; ++i) z[first + i] = part[i];
      }
      if (!params->residual_first) add_residuals();
      if (params->codes != nullptr) {
        CUTLASS_PRAGMA_UNROLL
        for (int r = 0; r < 2; ++r) {  // one row after the other: fewer registers at once
          float largest = 0.0f;
          CUTLASS_PRAGMA_UNROLL
          for (int i = 0; i < kValues; ++i)
            if (row(i) == r && inside(i) && fabsf(z[i]) <= 3.402823466e38f) largest = fmaxf(largest, fabsf(z[i]));
          const float by = store_scale(largest, r * 8);
          // The lane's two codes of every eight columns, two times eight in a word. Values 2 i and 2 i + 1 are
          // neighbours.
          std::uint32_t words[kTileColumns / 16] = {};
          CUTLASS_PRAGMA_UNROLL
          for (int i = 0; i < kValues; i += 2) {
            if (row(i) != r) continue;
            const std::uint32_t two =
                __nv_cvt_float2_to_fp8x2(make_float2(z[i] * by, z[i + 1] * by), __NV_SATFINITE, __NV_E4M3);
            std::uint32_t& word = words[column(i) / 16];
            word = column(i) % 16 < 8 ? (word & 0xffff0000u) | two : (word & 0xffffu) | two << 16;
          }
          store_row(words, r * 8);
        }
        cutlass::Array<cutlass::bfloat16_t, kValues> dropped;
        dropped.clear();  // so that the values' registers serve their codes
        return dropped;
      }
      return cutlass::NumericArrayConverter<cutlass::bfloat16_t, float, kValues>{}(z);
    }

    // The scale of the row that lies `below` the thread's first, from the lane's largest magnitude; the multiplier.
    CUTLASS_DEVICE float store_scale(float largest, int below) const {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
      const RowScale found = row_scale(largest, DType::e4m3, false);
      if (lane() == 0 && below < static_cast<int>(cute::get<0>(residue)))
        params->scale[first_row() + below] = found.scale;
      return found.multiplier;
    }

    CUTLASS_DEVICE void store_row(std::uint32_t const (&words)[kTileColumns / 16], int below) const {
      const bool is_row = below < static_cast<int>(cute::get<0>(residue));
      std::uint8_t* to = params->codes + (first_row() + below) * params->codes_ld;
      CUTLASS_PRAGMA_UNROLL
      for (int group = 0; group < kTileColumns / 32; ++group) {
        const uint2 eight = eight_codes(words[2 * group], words[2 * group + 1], lane());
        const int column = group * 32 + lane() * 8;
        if (is_row && column < columns) *reinterpret_cast<uint2*>(to + column) = eight;
      }
    }

    // Four lanes have two codes of each of four groups of eight columns, `a` those of groups 0 and 1, `b` of 2 and 3;
    // then each has all of the group that its number says. Neighbours swap first, then pairs of them.
    CUTLASS_DEVICE static uint2 eight_codes(std::uint32_t a, std::uint32_t b, int lane) {
      const bool odd = lane % 2 != 0, upper = lane >= 2;
      const auto low = [](std::uint32_t x, std::uint32_t y) { return (x & 0xffffu) | y << 16; };
      const auto high = [](std::uint32_t x, std::uint32_t y) { return x >> 16 | (y & 0xffff0000u); };
      const std::uint32_t even_groups = low(a, b), odd_groups = high(a, b);
      const std::uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? even_groups : odd_groups, 1);
      const std::uint32_t left = odd ? got : even_groups, right = odd ? odd_groups : got;
      const std::uint32_t first = low(left, right), second = high(left, right);
      const std::uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? first : second, 2);
      return upper ? make_uint2(other, second) : make_uint2(first, other);
    }

    // The lane's sums of squares of one row, part by part, become what their blocks are multiplied by.
    CUTLASS_DEVICE void invert(float (&parts)[kParts]) const {
      CUTLASS_PRAGMA_UNROLL
      for (int part = 0; part < kParts; ++part) parts[part] = over_lanes(parts[part]);
      const int block = params->block == 0 ? kTileColumns : params->block;
      if (block == kTileColumns)
        invert_blocks<kParts>(parts);
      else if (kParts % 2 == 0 && block == 2 * kNormStep)
        invert_blocks<2>(parts);
      else
        invert_blocks<1>(parts);
    }

    // Of blocks of `kLength` parts.
    template <int kLength>
    CUTLASS_DEVICE void invert_blocks(float (&parts)[kParts]) const {
      CUTLASS_PRAGMA_UNROLL
      for (int first = 0; first + kLength <= kParts; first += kLength) {
        float sum = 0.0f;
        CUTLASS_PRAGMA_UNROLL
        for (int part = 0; part < kLength; ++part) sum += parts[first + part];
        const int count = cute::min(kLength * kNormStep, columns - first * kNormStep);  // the last block may be short
        const float inverse = 1.0f / sqrtf(sum / static_cast<float>(cute::max(count, 1)) + params->eps);
        CUTLASS_PRAGMA_UNROLL
        for (int part = 0; part < kLength; ++part) parts[first + part] = inverse;
      }
    }

    // Of the four. From the column: what is known before the first tile would hold a register throughout.
    CUTLASS_DEVICE int lane() const { return first_column % 8 / 2; }
    CUTLASS_DEVICE std::int64_t first_row() const { return rows - cute::get<0>(residue); }

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
    const int m = cute::get<0>(args.problem_shape_mnkl), n = cute::get<1>(args.problem_shape_mnkl);
    const int tile = cute::get<1>(args.tile_coord_mnkl), layer = cute::get<3>(args.tile_coord_mnkl);
    return Callbacks<decltype(args.tCcD), decltype(args.residue_tCcD)>(args.tCcD, args.residue_tCcD, m, n, tile, layer,
                                                                       params);
  }
};

}  // namespace octavo::cuda
