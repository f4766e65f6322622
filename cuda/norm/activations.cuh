// Gradients through activations on a thread's columns.
#pragma once

#include "activation.hpp"
#include "device/columns.cuh"
#include "octavo/linear.hpp"

namespace octavo::cuda {

// Phi(x) + x phi(x).
__device__ inline float gelu_slope(float x) {
  return 0.5f * erfcf(x * -0.70710678118654752f) + x * expf(-0.5f * x * x) * 0.39894228040143268f;
}

// g becomes the gradient of v, g that of act(v); borders as torch has them.
__device__ inline void pull_activation(float (&g)[kColumns], const float (&v)[kColumns], Activation kind) {
  const auto each = [&](auto f) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) g[j] = f(g[j], v[j]);
  };
  switch (kind) {
    case Activation::relu: each([](float d, float x) { return x <= 0.0f ? 0.0f : d; }); break;
    case Activation::silu:
      each([](float d, float x) {
        const float s = sigmoid(x);
        return d * (s * (1.0f + x * (1.0f - s)));
      });
      break;
    case Activation::gelu: each([](float d, float x) { return d * gelu_slope(x); }); break;
    case Activation::hardswish:
      each([](float d, float x) { return x <= -3.0f ? 0.0f : x < 3.0f ? d * (x * (1.0f / 3.0f) + 0.5f) : d; });
      break;
    case Activation::sigmoid:
      each([](float d, float x) {
        const float s = sigmoid(x);
        return d * ((1.0f - s) * s);
      });
      break;
    default: break;
  }
}

}  // namespace octavo::cuda
