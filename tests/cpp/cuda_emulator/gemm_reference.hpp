// The GEMM kernels' stand-in: what cuda/gemm/kernel.cuh gives, in plain loops, for tests of everything around them.
#pragma once

#include "gemm/tiles.hpp"

namespace octavo::testing {

// How the tile of the latest run_gemm stores.
cuda::Store store_of_last();

// How many kernels were launched so far, and how many times parameters were made for one.
int gemm_launches();
int gemm_preparations();

}  // namespace octavo::testing
