// Gradients of a linear layer y = act(norm(z)), z = x W^T + bias: of z first, then of x and of W.
#pragma once

#include "octavo/linear.hpp"

namespace octavo {

// The gradient of z [M, N] and what is summed over rows on the way; each sum has one fixed order whatever the threads.
struct EpilogueBackwardArgs {
  MatrixView z;           // [M, N] f32 or bf16, what the norm saw; not read without norm and activation
  MatrixView grad;        // [M, N] of z's type: the gradient of act(norm(z))
  Epilogue epilogue;      // norm and activation; bias and residual are not read
  MatrixView grad_z;      // [M, N] f32 or bf16; data == nullptr: not wanted
  MatrixView grad_extra;  // [M, N] f32 or bf16, the same gradient for a residual before the norm; nullptr: not wanted
  float* grad_bias = nullptr;         // [N] or nullptr: not wanted
  float* grad_norm_weight = nullptr;  // [N], layer and rms only
  float* grad_norm_bias = nullptr;    // [N], layer only
  void* stream = nullptr;             // CUDA only
};

// grad_x [M, K] = grad [M, N] W [N, K]. Classes round
//   bf16          grad and the dequantized W to BF16
//   e4m3_row      grad times W's scales to E5M2 with a scale per row; W's codes are E4M3
//   int8_dynamic  the same to INT8; W's codes are INT8
struct GradInputArgs {
  MatrixView grad;  // [M, N] f32 or bf16
  const PackedWeight* weight = nullptr;
  MatrixView grad_x;       // [M, K] f32 or bf16
  void* stream = nullptr;  // CUDA only
};

// grad_weight [N, K] = grad^T [N, M] x [M, K]. Classes round
//   bf16      both to BF16
//   e4m3_row  grad to E5M2 and x to E4M3, each with a scale per column: the rows of the product
struct GradWeightArgs {
  MatrixView grad;         // [M, N] f32 or bf16
  MatrixView x;            // [M, K] f32 or bf16
  MatrixView grad_weight;  // [N, K] f32
  void* stream = nullptr;  // CUDA only
};

using EpilogueBackwardLauncher = Status (*)(const EpilogueBackwardArgs&);
using GradInputLauncher = Status (*)(const GradInputArgs&);
using GradWeightLauncher = Status (*)(const GradWeightArgs&);
// Both of one gradient and layer, which is rounded in one go: the bits of either alone.
using GradientsLauncher = Status (*)(const GradInputArgs&, const GradWeightArgs&);

Status validate(const EpilogueBackwardArgs& args);
Status validate(const GradInputArgs& args, Numerics numerics);
Status validate(const GradWeightArgs& args);

}  // namespace octavo
