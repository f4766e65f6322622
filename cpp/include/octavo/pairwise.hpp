// Products of every pair of rows, sample by sample: out[b] = x[b] y[b]^T. Feature interactions are such products: DLRM
// keeps the strict triangle of X X^T, a factorization-machine block all of X Y^T.
#pragma once

#include <cstdint>

#include "octavo/types.hpp"

namespace octavo {

// Which pairs (i, j) a row of the output or of a packed operand holds, in row-major order.
enum class Pairs : std::uint8_t { all, lower, upper };  // lower: j < i, upper: j > i

struct PairwiseArgs {
  std::int64_t batch = 0;
  BatchView x;  // [B, F, D] f32 or bf16; with x_pairs lower or upper: [B, 1, F (F - 1) / 2], the symmetric [F, F] with
                // zeros on the diagonal that it is the triangle of
  Pairs x_pairs = Pairs::all;
  BatchView y;  // [B, G, D] f32 or bf16; a triangle of the output needs G = F
  Pairs pairs = Pairs::all;
  void* out = nullptr;  // all: [B, F, G], triangles: [B, F (F - 1) / 2]; the last dimension contiguous
  std::int64_t out_batch_stride = 0, out_row_stride = 0;
  DType out_dtype = DType::f32;  // f32 or bf16
  void* stream = nullptr;        // CUDA only

  // D, the length of the sums.
  std::int64_t depth() const { return y.cols; }
  // F.
  std::int64_t rows() const;
  // Whether both operands are the same rows, so that what was made of y serves x.
  bool is_symmetric() const;
};

using PairwiseLauncher = Status (*)(const PairwiseArgs&);

// Sizes and types that no kernel could accept, in words that name the argument.
Status validate(const PairwiseArgs& args);

// Threads that share the samples; each may take some rows of a sample when there are fewer samples than threads.
struct PairwiseShares {
  int threads;
  std::int64_t parts;  // of the rows of one sample
};
PairwiseShares share_samples(const PairwiseArgs& args);

}  // namespace octavo
