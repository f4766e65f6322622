// Predicted times: what was measured on this machine, else what a fit to its measurements says, else the prior.
#include <algorithm>
#include <bit>
#include <mutex>
#include <numeric>
#include <tuple>

#include "octavo/dispatch.hpp"
#include "octavo/threading.hpp"

namespace octavo {

int m_bucket(std::int64_t m) {
  return m <= 0 ? 0 : static_cast<int>(std::bit_width(static_cast<std::uint64_t>(m - 1))) + 1;
}

namespace {

struct Known {
  std::mutex mutex;
  std::map<std::string, double> measured;  // us
  std::map<std::tuple<const KernelInfo*, DType, DType>, CostFeatures> fitted;
};
Known& known() {
  static auto* costs = new Known;  // never destroyed, as the registry
  return *costs;
}

std::string key(const KernelInfo& kernel, const Problem& p) {
  std::string text = kernel.name;
  for (const std::int64_t part :
       {static_cast<std::int64_t>(m_bucket(p.m)), p.n, p.k, static_cast<std::int64_t>(p.x_dtype),
        static_cast<std::int64_t>(p.out_dtype), static_cast<std::int64_t>(threads())})
    text += '/' + std::to_string(part);
  return text + '/' + p.epilogue;
}

double weight_bytes_per_element(Numerics numerics) { return static_cast<double>(size_of(weight_format(numerics))); }

// Terms of the epilogue: "bias+layer+hardswish" has three.
double terms(const std::string& epilogue) {
  return epilogue.empty() ? 0.0 : 1.0 + static_cast<double>(std::count(epilogue.begin(), epilogue.end(), '+'));
}

double workers_on(const Problem& p) { return p.device == Device::cpu && p.m * p.n * p.k > 60000 ? threads() : 1; }

double prior_us(const KernelInfo& kernel, const Problem& p) {
  if (kernel.estimate_us && p.m > 0 && p.n > 0) return kernel.estimate_us(p);
  const double workers = workers_on(p);
  const double m = static_cast<double>(p.m), n = static_cast<double>(p.n), k = static_cast<double>(p.k);
  const double macs = m * n * k;
  double bytes = m * k * static_cast<double>(size_of(p.x_dtype)) + m * n * static_cast<double>(size_of(p.out_dtype)) +
                 n * k * weight_bytes_per_element(kernel.numerics);
  double overhead = kernel.cost.overhead_us;
  if (kernel.library != "octavo") {  // every term of the epilogue is one more pass over FP32 outputs
    bytes += terms(p.epilogue) * 8.0 * m * n;
    overhead += terms(p.epilogue) * 3.0;
  }
  const double compute = macs / (kernel.cost.gmacs_per_s * workers * 1e3);
  const double memory = bytes / (kernel.cost.gbytes_per_s * workers * 1e3);
  return overhead + std::max(compute, memory);
}

}  // namespace

// A call, starting the other threads, multiply-adds, the weight once (what few rows cost), reading x, writing y, and
// per term of the epilogue a call and a pass over y. Thousands, so that coefficients are of one magnitude.
CostFeatures cost_features(const Problem& p) {
  const double workers = workers_on(p), part = 1e-3 / workers;
  const double m = static_cast<double>(p.m), n = static_cast<double>(p.n), k = static_cast<double>(p.k);
  const double passes = terms(p.epilogue);
  return {1.0,    workers > 1 ? 1.0 : 0.0, m * n * k * part, n * k * part, m * k * part, m * n * part,
          passes, passes * m * n * part};
}

Cost predicted_cost(const KernelInfo& kernel, const Problem& problem) {
  Known& costs = known();
  const std::scoped_lock lock(costs.mutex);
  const auto found = costs.measured.find(key(kernel, problem));
  if (found != costs.measured.end()) return {found->second, CostSource::measured};
  const auto fit = costs.fitted.find({&kernel, problem.x_dtype, problem.out_dtype});
  if (fit == costs.fitted.end()) return {prior_us(kernel, problem), CostSource::prior};
  const CostFeatures features = cost_features(problem);
  return {std::inner_product(features.begin(), features.end(), fit->second.begin(), 0.0), CostSource::calibrated};
}

void record_cost(const KernelInfo& kernel, const Problem& problem, double us) {
  Known& costs = known();
  const std::scoped_lock lock(costs.mutex);
  costs.measured[key(kernel, problem)] = us;
}

void forget_costs() {
  Known& costs = known();
  const std::scoped_lock lock(costs.mutex);
  costs.measured.clear();
}

void set_fitted_cost(const KernelInfo& kernel, DType x_dtype, DType out_dtype, const CostFeatures& coefficients) {
  Known& costs = known();
  const std::scoped_lock lock(costs.mutex);
  costs.fitted[{&kernel, x_dtype, out_dtype}] = coefficients;
}

void forget_fitted_costs() {
  Known& costs = known();
  const std::scoped_lock lock(costs.mutex);
  costs.fitted.clear();
}

}  // namespace octavo
