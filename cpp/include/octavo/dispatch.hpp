// Which kernel, and why: hard predicates, then accuracy, then cost.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "octavo/registry.hpp"

namespace octavo {

struct Problem {
  Op op = Op::linear;
  std::int64_t m = 0, n = 0, k = 0;
  DType x_dtype = DType::f32, out_dtype = DType::f32;
  std::string epilogue;  // "bias+layer+hardswish+residual", what is there, in that order; empty: none
  Device device = Device::cpu;
  std::optional<Numerics> numerics;  // only kernels of this class (the weight is packed already); none: any class
};

// Errors of a class at a site (docs/definitions.md). NaN: not known.
struct ErrorEstimate {
  double rel_l1 = std::numeric_limits<double>::quiet_NaN();
  double mere = std::numeric_limits<double>::quiet_NaN();
  double signal_rel = std::numeric_limits<double>::quiet_NaN();
  double post_norm = std::numeric_limits<double>::quiet_NaN();
  double sqnr_db = std::numeric_limits<double>::quiet_NaN();
};

// What a class loses on Gaussian data (cpu-ceilings.md 2.5); FP32 is the reference and loses nothing.
ErrorEstimate nominal_error(Numerics numerics);

// What the user demands; an empty member demands nothing.
struct Requirement {
  std::optional<double> max_rel_l1, max_mere, max_signal_rel, max_post_norm, min_sqnr_db;
  bool deterministic = false;
};

// Empty when `error` meets the requirement; else the first demand it misses, in words. An unknown error misses.
std::string first_miss(const Requirement& requirement, const ErrorEstimate& error);

using Evidence = std::map<Numerics, ErrorEstimate>;

// Where a cost comes from, weakest first: the row's prior; a fit to this machine; this very problem, timed.
enum class CostSource : std::uint8_t { prior, calibrated, measured };
const char* to_string(CostSource source);

struct Candidate {
  const KernelInfo* kernel = nullptr;
  bool admitted = false;
  double predicted_us = 0;
  CostSource source = CostSource::prior;
  ErrorEstimate error;
  std::string reason;  // why it was not admitted
};

struct Decision {
  std::vector<Candidate> candidates;  // admitted ones first, fastest first
  std::string reason;                 // why the first one; empty when none was admitted
  const Candidate* chosen() const {
    return !candidates.empty() && candidates.front().admitted ? &candidates.front() : nullptr;
  }
};

// FP32 is always admitted on accuracy; a low-precision kernel must meet the requirement and be the fastest.
Decision choose(const Problem& problem, const Requirement& requirement, const Evidence& evidence);

// Microseconds of `kernel` on `problem` with this many threads: measured where someone measured, else by the fit of
// this kernel where there is one, else from its prior.
struct Cost {
  double us;
  CostSource source;
};
Cost predicted_cost(const KernelInfo& kernel, const Problem& problem);
void record_cost(const KernelInfo& kernel, const Problem& problem, double us);
void forget_costs();  // measured ones

// What a fitted cost is linear in, with this many threads: us = sum of coefficient * feature.
inline constexpr int kCostFeatures = 8;
using CostFeatures = std::array<double, kCostFeatures>;
CostFeatures cost_features(const Problem& problem);

// Coefficients of a kernel between these types at the boundary, for every number of threads until forgotten.
void set_fitted_cost(const KernelInfo& kernel, DType x_dtype, DType out_dtype, const CostFeatures& coefficients);
void forget_fitted_costs();

// Rows of a call are told apart up to a power of two: costs are recorded per bucket.
int m_bucket(std::int64_t m);

}  // namespace octavo
