// What joins the blocks of a layer over tokens: y = norm(parts below each other [+ residual]), sample by sample.
#pragma once

#include <cstdint>

#include "octavo/linear.hpp"
#include "octavo/types.hpp"

namespace octavo {

struct AddNormArgs {
  std::int64_t batch = 0;
  const BatchView* parts = nullptr;  // [B, n_i, D] f32 or bf16, all of one type; the first tokens of y, then the next
  int part_count = 0;
  BatchView residual;  // [B, sum of n_i, D] of that type; data == nullptr: none
  NormKind norm = NormKind::none;
  const float* weight = nullptr;  // [D]; null: none
  const float* bias = nullptr;    // [D]; layer only
  float eps = 1e-5f;
  std::int64_t norm_block = 256;
  void* out = nullptr;             // [B, sum of n_i, D] contiguous, of the parts' type
  void* out_transposed = nullptr;  // [B, D, sum of n_i] contiguous, the same numbers; null: not wanted
  void* saved = nullptr;           // as out: what the norm saw, for a backward; null: not wanted

  std::int64_t tokens() const {
    std::int64_t n = 0;
    for (int i = 0; i < part_count; ++i) n += parts[i].rows;
    return n;
  }
};

// Gradient of what the norm saw, z = parts below each other + residual: that of a part is its rows, of the residual
// all.
struct AddNormBackwardArgs {
  std::int64_t batch = 0;
  BatchView grad;             // of y: [B, n, D] f32 or bf16; data == nullptr: none
  BatchView grad_transposed;  // of y^T, seen as [B, n, D] of that type too; data == nullptr: none; one of both there is
  const void* z = nullptr;    // [B, n, D] contiguous, of their type; not without a norm
  NormKind norm = NormKind::none;
  const float* weight = nullptr;  // [D]; null: none
  float eps = 1e-5f;
  std::int64_t norm_block = 256;
  void* grad_z = nullptr;        // [B, n, D] contiguous, of their type
  float* grad_weight = nullptr;  // [D]; null: not wanted
  float* grad_bias = nullptr;    // [D]; null: not wanted
};

using AddNormBackwardLauncher = Status (*)(const AddNormBackwardArgs&);

using AddNormLauncher = Status (*)(const AddNormArgs&);

// Sizes, types and strides that no kernel could accept, in words that name the argument.
Status validate(const AddNormArgs& args);
Status validate(const AddNormBackwardArgs& args);

}  // namespace octavo
