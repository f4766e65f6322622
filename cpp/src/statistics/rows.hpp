// What statistics' parts per instruction set take: rows that are finite and FP32 already.
#pragma once

#include "cpu/per_isa.hpp"
#include "octavo/statistics.hpp"

namespace octavo {

struct FiniteRows {
  const float* data;  // [count, k] contiguous
  std::int64_t count, k;
};
struct MomentsArgs {
  FiniteRows rows;
  Moments moments;
};
struct TailsArgs {
  FiniteRows rows;
  Tails tails;
};

OCTAVO_DECLARE_GENERIC(void add_moments(const MomentsArgs& args))
OCTAVO_DECLARE_GENERIC(void add_tails(const TailsArgs& args))

// Scratch slots of statistics on the calling thread.
enum : int { kFiniteRowsSlot, kPanelsSlot, kSignsSlot, kProductsSlot };

// With `count` rows after `before` others and a mean of its own, how a batch enters: x' = mean + share * difference,
// S' = S + S_batch + weight * difference difference^T.
struct BatchWeight {
  double share, weight;
  BatchWeight(std::int64_t before, std::int64_t count)
      : share(static_cast<double>(count) / static_cast<double>(before + count)),
        weight(static_cast<double>(before) * share) {}
};

// Of `from` central power sums over n_from elements into those over n_into [Pebay 2008].
void merge_powers(double n_from, const double* from, double n_into, double* into);

}  // namespace octavo
