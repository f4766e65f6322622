// Merging tails.
#include <algorithm>

#include "octavo/statistics.hpp"
#include "statistics/rows.hpp"

namespace octavo {

void merge_powers(double n_from, const double* from, double n_into, double* into) {
  if (n_from == 0) return;
  const double n = n_from + n_into, d = from[kMean] - into[kMean], d_n = d / n;
  const double a2 = into[kSecond], a3 = into[kThird], b2 = from[kSecond], b3 = from[kThird];
  into[kFourth] +=
      from[kFourth] + d * d_n * d_n * d_n * n_into * n_from * (n_into * n_into - n_into * n_from + n_from * n_from) +
      6 * d_n * d_n * (n_into * n_into * b2 + n_from * n_from * a2) + 4 * d_n * (n_into * b3 - n_from * a3);
  into[kThird] += b3 + d * d_n * d_n * n_into * n_from * (n_into - n_from) + 3 * d_n * (n_into * b2 - n_from * a2);
  into[kSecond] += b2 + d * d_n * n_into * n_from;
  into[kMean] += d_n * n_from;
}

void merge(const Tails& from, const Tails& into) {
  merge_powers(static_cast<double>(from.counts[kElements]), from.sums, static_cast<double>(into.counts[kElements]),
               into.sums);
  into.sums[kShareSquares] += from.sums[kShareSquares];
  for (const int largest : {kAmax, kLastAmax}) into.sums[largest] = std::max(into.sums[largest], from.sums[largest]);
  for (int c = 0; c < kTailCounts; ++c) into.counts[c] += from.counts[c];
  for (int b = 0; b < kAmaxBins; ++b) into.row_amax[b] += from.row_amax[b];
  for (int b = 0; b < 2 * kShareBins; ++b) into.shares[b] += from.shares[b];
}

}  // namespace octavo
