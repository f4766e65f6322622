// Activations in FP32, the one definition of every CUDA kernel, with the meaning of cpu/generic/linear_vector.hpp. Host
// code has them too: tests run them without a GPU.
#pragma once

#include <cmath>

#include "octavo/linear.hpp"

#ifdef __CUDACC__
#define OCTAVO_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define OCTAVO_HOST_DEVICE inline
#endif

namespace octavo::cuda {

OCTAVO_HOST_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

OCTAVO_HOST_DEVICE float activate(float x, Activation kind) {
  switch (kind) {
    case Activation::relu: return x < 0.0f ? 0.0f : x;  // NaN stays
    case Activation::silu: return x * sigmoid(x);
    // Exact up to FP32's last bits of x; erfcf would keep the left tail, and spills in the GEMM's norms.
    case Activation::gelu: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case Activation::hardswish: return x * fminf(fmaxf(fmaf(x, 1.0f / 6.0f, 0.5f), 0.0f), 1.0f);
    case Activation::sigmoid: return sigmoid(x);
    default: return x;
  }
}

// `count` values in place. The switch stands outside the loop: one branch for all of them.
template <int count, class Values>
OCTAVO_HOST_DEVICE void activate_all(Values& z, Activation kind) {
  const auto each = [&](auto f) {
#pragma unroll
    for (int i = 0; i < count; ++i) z[i] = f(z[i]);
  };
  switch (kind) {
    case Activation::relu: each([](float x) { return activate(x, Activation::relu); }); break;
    case Activation::silu: each([](float x) { return activate(x, Activation::silu); }); break;
    case Activation::gelu: each([](float x) { return activate(x, Activation::gelu); }); break;
    case Activation::hardswish: each([](float x) { return activate(x, Activation::hardswish); }); break;
    case Activation::sigmoid: each([](float x) { return activate(x, Activation::sigmoid); }); break;
    default: break;
  }
}

}  // namespace octavo::cuda
