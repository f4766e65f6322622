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

  std::int64_t tokens() const {
    std::int64_t n = 0;
    for (int i = 0; i < part_count; ++i) n += parts[i].rows;
    return n;
  }
};

using AddNormLauncher = Status (*)(const AddNormArgs&);

// Sizes, types and strides that no kernel could accept, in words that name the argument.
Status validate(const AddNormArgs& args);

}  // namespace octavo
