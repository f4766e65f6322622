// Linear layers: y = act(norm(x W^T + bias [+ residual when residual_before_norm])) [+ residual].
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "octavo/memory.hpp"
#include "octavo/quantize.hpp"
#include "octavo/types.hpp"

namespace octavo {

// A numerics class: activation format and scaling, weight format and scaling, accumulation. A kernel serves exactly
// one.
enum class Numerics : std::uint8_t {
  fp32,
  bf16,              // x and W in BF16, FP32 accumulation
  e4m3_row,          // x and W in E4M3 with row-wise FP32 scales (W8A8), FP32 accumulation
  e4m3_weight_only,  // W in E4M3 with row-wise scales, x in BF16 (W8A16), FP32 accumulation
  int8_dynamic,      // x and W in symmetric INT8 with row-wise scales, INT32 accumulation
  e4m3_row_fast,     // as e4m3_row, all of K summed in Hopper's tensor cores, which keep about 14 bits; CUDA only
  e4m3_block,  // x in E4M3 with a scale per 1x128, W with one per 128x128; sums of 128 of K are scaled, then added
};
const char* to_string(Numerics numerics);
DType weight_format(Numerics numerics);
constexpr Scaling weight_scaling(Numerics numerics) {
  return numerics == Numerics::e4m3_block ? Scaling::block_128x128 : Scaling::row;
}

// block: parameter-free RMS over blocks of 256 columns. swish_rms: r * sigmoid(r), r = RMS norm; its own activation.
enum class NormKind : std::uint8_t { none, layer, rms, block, swish_rms };
enum class Activation : std::uint8_t { none, relu, silu, gelu, hardswish, sigmoid };  // gelu: exact (erf)

struct Epilogue {
  const float* bias = nullptr;  // [N]
  NormKind norm = NormKind::none;
  const float* norm_weight = nullptr;  // [N]; not for block
  const float* norm_bias = nullptr;    // [N], layer only
  float eps = 1e-5f;
  std::int64_t norm_block = 256;  // block norm: a last short block has its own mean
  Activation activation = Activation::none;
  MatrixView residual;  // [M, N] f32 or bf16; data == nullptr: none
  bool residual_before_norm = false;
  // CUDA only, [M]: row i adds row residual_rows[i] of residual [R, N]; i becomes NaN where there is none. Not with
  // `saved`. nullptr: a row of its own.
  const std::int64_t* residual_rows = nullptr;
  MatrixView saved;  // [M, N] of y's type: what the norm saw is written there for the backward; nullptr: not wanted

  [[gnu::always_inline]] Activation last_activation() const {
    return norm == NormKind::swish_rms ? Activation::silu : activation;
  }
};

// Canonical weight codes, owned by the caller and outliving this object, and the layouts kernels made of them.
// The caller makes a new one when the weight changes.
class PackedWeight {
 public:
  // codes [N, K] contiguous: E4M3 or INT8 bytes with scales as quantize lays them out (row: [N]; or block_128x128),
  // BF16 with scale == nullptr.
  PackedWeight(const void* codes, const float* scale, std::int64_t n, std::int64_t k, DType format,
               Scaling scaling = Scaling::row)
      : codes_(codes), scale_(scale), n_(n), k_(k), format_(format), scaling_(scaling) {}

  const void* codes() const { return codes_; }
  const float* scale() const { return scale_; }
  std::int64_t n() const { return n_; }
  std::int64_t k() const { return k_; }
  DType format() const { return format_; }
  Scaling scaling() const { return scaling_; }

  // What the code at (n, k) is multiplied by.
  float scale_at(std::int64_t n, std::int64_t k) const {
    if (scale_ == nullptr) return 1.0f;
    return scaling_ == Scaling::row ? scale_[n] : scale_[n / kScaleBlock * scale_blocks(k_) + k / kScaleBlock];
  }

  // The layout a kernel asks for: `bytes` filled once by fill(*this, out) and kept, 64-byte aligned. `tag` is the
  // address of a static of that kernel.
  const void* layout(const void* tag, std::size_t bytes, void (*fill)(const PackedWeight&, void* out)) const;

  std::size_t layout_bytes() const;

 private:
  struct Entry {
    const void* tag;
    AlignedBuffer buffer;
  };
  const void* codes_;
  const float* scale_;
  std::int64_t n_, k_;
  DType format_;
  Scaling scaling_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Entry>> layouts_;
};

struct LinearArgs {
  MatrixView x;                          // [M, K] f32, bf16, or codes of the class's activation format with x_scale
  const PackedWeight* weight = nullptr;  // [N, K]
  Epilogue epilogue;
  MatrixView y;                    // [M, N] f32, bf16, or e4m3 or i8 codes with y_scale
  void* stream = nullptr;          // CUDA only
  const float* x_scale = nullptr;  // [M], or [M, ceil(K / 128)] for e4m3_block: as quantize gives it
  float* y_scale = nullptr;        // [M]; y is quantize's of the FP32 output (CUDA, norms: of one as near as BF16's)
};

using LinearLauncher = Status (*)(const LinearArgs&);

// Shapes, types and a weight that kernels of this class could not accept, in words that name the argument.
Status validate(const LinearArgs& args, Numerics numerics);

}  // namespace octavo
