// The GEMM kernels by their place in tiles.hpp.
#pragma once

#include <cuda_runtime_api.h>

#include "gemm/problem.hpp"
#include "gemm/tiles.hpp"

namespace octavo::cuda {

// What CUTLASS says of the problem, on the host; needs no device. ok or unsupported.
template <int kIndex>
Status accepts_tile(const Gemm& g);

template <int kIndex>
Status run_tile(const Gemm& g, cudaStream_t stream);

// The same by index.
Status accepts_gemm(int tile, const Gemm& g);
Status run_gemm(int tile, const Gemm& g, cudaStream_t stream);

}  // namespace octavo::cuda
