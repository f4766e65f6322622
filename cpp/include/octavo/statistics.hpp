// What LoKA's Probe keeps of the rows that a layer saw: mergeable moments and tails, accumulated in FP64 and integers.
//
// States are plain arrays that the caller owns, zero at first, so that they are saved, sent and merged as tensors.
// Merging two states gives what one state would hold that saw both streams, up to FP64 rounding.
#pragma once

#include <cstdint>

#include "octavo/types.hpp"

namespace octavo {

// Rows that were taken in, and rows left out because they hold NaN, or infinities but no NaN.
enum MomentCount : int { kRows, kNanRows, kInfiniteRows, kMomentCounts };

// Mean and covariance of rows of K numbers [Welford; Chan, Golub, LeVeque].
//   rank == 0: scatter is sum (x - mean)(x - mean)^T, [K, K], of which only the upper triangle is filled
//   rank > 0:  scatter is that matrix times random signs [K, rank], a sketch from which it follows up to a diagonal
//              [Tropp, Yurtsever, Udell, Cevher: Fixed-rank approximation of a PSD matrix from streaming data]
struct Moments {
  std::int64_t k = 0, rank = 0;
  std::int64_t* counts = nullptr;  // [kMomentCounts]
  double* mean = nullptr;          // [K]
  double* scatter = nullptr;       // [K, K] or [K, rank]
  double* diagonal = nullptr;      // [K], of the matrix; rank > 0 only
};

// Counts of elements, but for the first. A row's scale is its largest magnitude, a tensor's that of its batch.
enum TailCount : int {
  kZeroRows,
  kElements,
  kZeros,
  kNegatives,
  kUnderflowE4M3Row,     // not zero, but its code in E4M3 with a scale per row is
  kUnderflowInt8Row,     // the same in INT8
  kUnderflowE4M3Tensor,  // with a scale per tensor
  kUnderflowInt8Tensor,
  kBeyondLastAmax,  // larger than the largest of the batch before: saturates under delayed scaling
  kTailCounts
};
// mean .. fourth: of all elements, the sums of (x - mean)^2, ^3, ^4. share_squares: sum of (x / its row's largest)^2.
enum TailSum : int { kMean, kSecond, kThird, kFourth, kShareSquares, kAmax, kLastAmax, kTailSums };

// Bins that are linear inside octaves, so that a bin's number is the upper bits of an FP32.
constexpr int kAmaxBins = 4096;  // row's largest magnitude: bin b from the FP32 with bits b << 19 on
// x / row's largest, negative ones first: bin b of a sign from the FP32 with bits (0x3f8 - b) << 20 on.
constexpr int kShareBins = 256;
struct Tails {
  std::int64_t* counts = nullptr;    // [kTailCounts]
  double* sums = nullptr;            // [kTailSums]
  std::int64_t* row_amax = nullptr;  // [kAmaxBins], rows of zeros left out
  std::int64_t* shares = nullptr;    // [2, kShareBins], zeros left out
};

// Takes the rows of x [M, K] (f32 or bf16) into both; tails may be null. Any M, K >= 0.
Status observe(const MatrixView& x, const Moments& moments, const Tails* tails);

// Takes what `from` saw into `into`.
Status merge(const Moments& from, const Moments& into);
void merge(const Tails& from, const Tails& into);

// The signs [K, rank], each 1 or -1, that a sketch is a product with.
void sketch_signs(std::int64_t k, std::int64_t rank, float* out);

}  // namespace octavo
