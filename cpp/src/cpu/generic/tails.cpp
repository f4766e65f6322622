// A batch into tails: histograms of magnitudes, power sums, and what would round to zero.
#include <algorithm>
#include <bit>
#include <cmath>

#include "octavo/float8.hpp"
#include "statistics/rows.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

constexpr int kParts = 16;  // sums side by side
// Half of the smallest code over the largest one: shares up to here round to zero (half ties to even, zero).
constexpr float kE4M3Nothing = 0x1p-10f / kE4M3Max, kInt8Nothing = 0.5f / 127.0f;

std::uint32_t magnitude_bits(float x) { return std::bit_cast<std::uint32_t>(x) & 0x7fffffffu; }

float largest_of(const float* row, std::int64_t k) {
  std::uint32_t largest = 0;
  for (std::int64_t c = 0; c < k; ++c) largest = std::max(largest, magnitude_bits(row[c]));
  return std::bit_cast<float>(largest);
}

template <class Value>
double sum_of(const float* x, std::int64_t count, Value&& value) {
  double parts[kParts] = {};
  std::int64_t i = 0;
  for (; i + kParts <= count; i += kParts)
    for (int p = 0; p < kParts; ++p) parts[p] += value(static_cast<double>(x[i + p]));
  for (; i < count; ++i) parts[i % kParts] += value(static_cast<double>(x[i]));
  double sum = 0;
  for (const double part : parts) sum += part;
  return sum;
}

std::int64_t count_within(const float* row, std::int64_t k, float most) {
  const std::uint32_t bound = magnitude_bits(most);
  std::uint32_t count = 0;
  for (std::int64_t c = 0; c < k; ++c) count += magnitude_bits(row[c]) <= bound;
  return count;
}

void add_row(const float* row, std::int64_t k, float amax, float batch_amax, const Tails& tails) {
  std::int64_t* counts = tails.counts;
  const std::int64_t zeros = count_within(row, k, 0.0f);
  std::uint32_t negatives = 0;
  for (std::int64_t c = 0; c < k; ++c) negatives += row[c] < 0;
  counts[kZeros] += zeros;
  counts[kNegatives] += negatives;
  counts[kUnderflowE4M3Tensor] += count_within(row, k, batch_amax * kE4M3Nothing) - zeros;
  counts[kUnderflowInt8Tensor] += count_within(row, k, batch_amax * kInt8Nothing) - zeros;
  if (tails.sums[kLastAmax] > 0)
    counts[kBeyondLastAmax] += k - count_within(row, k, static_cast<float>(tails.sums[kLastAmax]));
  if (amax == 0) {
    ++counts[kZeroRows];
    return;
  }
  ++tails.row_amax[magnitude_bits(amax) >> 19];
  counts[kUnderflowE4M3Row] += count_within(row, k, amax * kE4M3Nothing) - zeros;
  counts[kUnderflowInt8Row] += count_within(row, k, amax * kInt8Nothing) - zeros;
  const double inverse = 1 / static_cast<double>(amax);
  tails.sums[kShareSquares] += sum_of(row, k, [=](double x) { return x * inverse * (x * inverse); });
  for (std::int64_t c = 0; c < k; ++c) {
    if (row[c] == 0) continue;
    const float share = static_cast<float>(std::abs(static_cast<double>(row[c])) * inverse);
    const int bin = 0x3f8 - static_cast<int>(magnitude_bits(share) >> 20);
    ++tails.shares[(row[c] > 0 ? kShareBins : 0) + std::clamp(bin, 0, kShareBins - 1)];
  }
}

}  // namespace

void add_tails(const TailsArgs& args) {
  const auto& [rows, tails] = args;
  const std::int64_t elements = rows.count * rows.k;
  const float batch_amax = largest_of(rows.data, elements);
  for (std::int64_t r = 0; r < rows.count; ++r) {
    const float* row = rows.data + r * rows.k;
    add_row(row, rows.k, largest_of(row, rows.k), batch_amax, tails);
  }
  double powers[kTailSums] = {};
  const double mean = sum_of(rows.data, elements, [](double x) { return x; }) / static_cast<double>(elements);
  powers[kMean] = mean;
  powers[kSecond] = sum_of(rows.data, elements, [=](double x) { return (x - mean) * (x - mean); });
  powers[kThird] = sum_of(rows.data, elements, [=](double x) { return (x - mean) * (x - mean) * (x - mean); });
  powers[kFourth] = sum_of(rows.data, elements, [=](double x) {
    const double square = (x - mean) * (x - mean);
    return square * square;
  });
  merge_powers(static_cast<double>(elements), powers, static_cast<double>(tails.counts[kElements]), tails.sums);
  tails.counts[kElements] += elements;
  tails.sums[kAmax] = std::max(tails.sums[kAmax], static_cast<double>(batch_amax));
  tails.sums[kLastAmax] = static_cast<double>(batch_amax);
}

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
