// The GEMM kernels' stand-in: what cuda/gemm/gemm.hpp promises, in plain loops, for tests of everything around them.
#pragma once

namespace octavo::testing {

// The tile of the latest run_gemm, of cuda::kTiles.
int last_tile();

// How often run_gemm was called so far.
int gemm_launches();

}  // namespace octavo::testing
