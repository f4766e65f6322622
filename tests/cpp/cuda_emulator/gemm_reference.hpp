// The GEMM kernels' stand-in: what cuda/gemm/gemm.hpp promises, in plain loops, for tests of everything around them.
#pragma once

#include "gemm/tiles.hpp"

namespace octavo::testing {

// How the tile of the latest run_gemm stores.
cuda::Store store_of_last();

// How often run_gemm was called so far.
int gemm_launches();

}  // namespace octavo::testing
