#include <algorithm>
#include <cmath>
#include <cstdio>

#include "octavo/dispatch.hpp"

namespace octavo {

const char* to_string(CostSource source) {
  switch (source) {
    case CostSource::prior: return "prior";
    case CostSource::calibrated: return "calibrated";
    default: return "measured";
  }
}

ErrorEstimate nominal_error(Numerics numerics) {
  ErrorEstimate error;
  switch (numerics) {
    case Numerics::fp32: return {0.0, 0.0, 0.0, 0.0, std::numeric_limits<double>::infinity()};
    case Numerics::bf16: error.sqnr_db = 52.0; break;
    case Numerics::e4m3_row: error.sqnr_db = 28.5; break;
    case Numerics::e4m3_weight_only: error.sqnr_db = 31.5; break;
    case Numerics::int8_dynamic: error.sqnr_db = 39.5; break;
    case Numerics::e4m3_row_fast: error.sqnr_db = 28.4; break;  // never measured
    case Numerics::e4m3_block: error.sqnr_db = 28.5; break;
  }
  error.rel_l1 = std::pow(10.0, -error.sqnr_db / 20.0);  // equal for Gaussian outputs and errors
  return error;
}

namespace {

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

std::string above(const char* name, double value, double bound) {
  if (std::isnan(value)) return std::string(name) + " is not known here and the requirement bounds it";
  return value <= bound ? "" : std::string(name) + " " + number(value) + " > " + number(bound);
}

double precision(const Candidate& c) {
  return std::isnan(c.error.sqnr_db) ? -std::numeric_limits<double>::infinity() : c.error.sqnr_db;
}

bool is_code(DType dtype) { return dtype == DType::e4m3 || dtype == DType::i8; }

// Classes that Probe and plans do not measure unasked: their nominal error alone admits nobody.
bool needs_a_name(Numerics numerics) { return numerics == Numerics::e4m3_row_fast || numerics == Numerics::e4m3_block; }

std::string predicate_miss(const KernelInfo& kernel, const Problem& problem, const Requirement& requirement) {
  if (!kernel.is_supported()) return "this machine lacks what it needs";
  if (kernel.state == Qualification::quarantined) return "quarantined: " + kernel.note;
  if (!kernel.may_be_chosen()) return "not qualified on this machine yet";
  if (kernel.accepts && !kernel.accepts(problem.m, problem.n, problem.k)) return "does not take this shape";
  if (kernel.op == Op::linear) {
    const bool e4m3 = kernel.numerics == Numerics::e4m3_row || kernel.numerics == Numerics::e4m3_row_fast ||
                      kernel.numerics == Numerics::e4m3_block;
    const DType codes = e4m3 ? DType::e4m3 : kernel.numerics == Numerics::int8_dynamic ? DType::i8 : DType::f32;
    if (is_code(problem.x_dtype) && problem.x_dtype != codes)
      return "x is quantized in another format than the class's";
    if ((is_code(problem.x_dtype) || is_code(problem.out_dtype)) && !kernel.takes_codes)
      return "takes and gives no eight-bit codes";
  }
  if (kernel.product == DType::bf16 && problem.out_dtype == DType::f32)
    return "rounds its product to bfloat16, the output is float32";
  if (requirement.deterministic && !kernel.deterministic) return "not deterministic";
  return "";
}

}  // namespace

std::string first_miss(const Requirement& requirement, const ErrorEstimate& error) {
  if (requirement.min_sqnr_db) {
    if (std::isnan(error.sqnr_db)) return "SQNR is not known here and the requirement bounds it";
    if (!(error.sqnr_db >= *requirement.min_sqnr_db))
      return "SQNR " + number(error.sqnr_db) + " dB < " + number(*requirement.min_sqnr_db) + " dB";
  }
  const struct {
    const char* name;
    double value;
    const std::optional<double>& bound;
  } upper[] = {{"relative L1", error.rel_l1, requirement.max_rel_l1},
               {"MERE", error.mere, requirement.max_mere},
               {"signal-relative error", error.signal_rel, requirement.max_signal_rel},
               {"post-norm error", error.post_norm, requirement.max_post_norm}};
  for (const auto& demand : upper)
    if (demand.bound)
      if (std::string miss = above(demand.name, demand.value, *demand.bound); !miss.empty()) return miss;
  return "";
}

Decision choose(const Problem& problem, const Requirement& requirement, const Evidence& evidence) {
  Decision decision;
  for (const KernelInfo* kernel : Registry::instance().all()) {
    if (kernel->op != problem.op || kernel->device != problem.device) continue;
    if (problem.numerics && kernel->numerics != *problem.numerics) continue;
    Candidate candidate;
    candidate.kernel = kernel;
    const auto known = evidence.find(kernel->numerics);
    candidate.error = known != evidence.end() ? known->second : nominal_error(kernel->numerics);
    const Cost cost = predicted_cost(*kernel, problem);
    candidate.predicted_us = cost.us;
    candidate.source = cost.source;
    candidate.reason = predicate_miss(*kernel, problem, requirement);
    if (candidate.reason.empty() && kernel->only_measured && cost.source != CostSource::measured)
      candidate.reason = "is chosen only where it was timed (octavo.ops.dispatch.tune)";
    if (candidate.reason.empty() && !problem.numerics && known == evidence.end() && needs_a_name(kernel->numerics))
      candidate.reason = "of a class that serves where it is named or measured";
    if (candidate.reason.empty() && problem.op == Op::linear && kernel->numerics != Numerics::fp32)
      candidate.reason = first_miss(requirement, candidate.error);
    candidate.admitted = candidate.reason.empty();
    decision.candidates.push_back(std::move(candidate));
  }
  // Of equally fast kernels the more precise one, then the one registered first.
  std::stable_sort(decision.candidates.begin(), decision.candidates.end(), [](const Candidate& a, const Candidate& b) {
    if (a.admitted != b.admitted) return a.admitted;
    if (a.predicted_us != b.predicted_us) return a.predicted_us < b.predicted_us;
    return precision(a) > precision(b);
  });
  if (const Candidate* best = decision.chosen()) {
    const auto admitted = std::count_if(decision.candidates.begin(), decision.candidates.end(),
                                        [](const Candidate& c) { return c.admitted; });
    decision.reason = "fastest of " + std::to_string(admitted) + " admitted (" + number(best->predicted_us) + " us " +
                      to_string(best->source) + ")";
    if (admitted > 1) {
      const Candidate& next = decision.candidates[1];
      decision.reason += "; next " + next.kernel->name + " " + number(next.predicted_us) + " us";
    }
  }
  return decision;
}

}  // namespace octavo
