// Activations in FP32, for device and host: tests run them on a machine without a GPU.
#pragma once

#include <cmath>

#include "octavo/linear.hpp"

#ifdef __CUDACC__
#define OCTAVO_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define OCTAVO_HOST_DEVICE inline
#endif

namespace octavo::cuda {

OCTAVO_HOST_DEVICE float activate(float x, Activation kind) {
  switch (kind) {
    case Activation::relu: return x < 0.0f ? 0.0f : x;  // NaN stays
    case Activation::silu: return x / (1.0f + expf(-x));
    case Activation::gelu: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case Activation::hardswish: return x * fminf(fmaxf(x + 3.0f, 0.0f), 6.0f) / 6.0f;
    case Activation::sigmoid: return 1.0f / (1.0f + expf(-x));
    default: return x;
  }
}

}  // namespace octavo::cuda
