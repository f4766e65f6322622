// The GEMM kernels by their place in tiles.hpp.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "device/device.hpp"
#include "gemm/problem.hpp"
#include "gemm/tiles.hpp"

namespace octavo::cuda {

// A kernel's parameters, its tensor maps among them: bytes that may be copied.
struct GemmParams {
  alignas(128) std::byte bytes[2304];
};

// What CUTLASS says of the problem, on the host; needs no device. ok or unsupported.
template <int kIndex>
Status accepts_tile(const Gemm& g);

// Parameters of the problem on the current device, where the kernel is made ready. `row`: tile.n BF16 of scratch, of a
// norm that writes codes. `workspace`: stays empty if the kernel wants none.
template <int kIndex>
Status prepare_tile(const Gemm& g, void* row, StreamBuffer& workspace, cudaStream_t stream, GemmParams& params);

// `early`: may start while what comes before it on the stream still runs, and waits for that itself.
template <int kIndex>
Status launch_tile(const GemmParams& params, cudaStream_t stream, bool early);

// The same by index. run_gemm keeps the parameters of recent calls: tensor maps are encoded once for the same operands.
Status accepts_gemm(int tile, const Gemm& g);
Status run_gemm(int tile, const Gemm& g, cudaStream_t stream);

}  // namespace octavo::cuda
