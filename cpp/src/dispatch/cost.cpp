// Predicted times: what was measured on this machine, else each kernel's prior.
#include <algorithm>
#include <bit>
#include <mutex>

#include "octavo/dispatch.hpp"
#include "octavo/threading.hpp"

namespace octavo {

int m_bucket(std::int64_t m) {
  return m <= 0 ? 0 : static_cast<int>(std::bit_width(static_cast<std::uint64_t>(m - 1))) + 1;
}

namespace {

struct Measured {
  std::mutex mutex;
  std::map<std::string, double> us;
};
Measured& measured() {
  static auto* costs = new Measured;  // never destroyed, as the registry
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

double prior_us(const KernelInfo& kernel, const Problem& p) {
  const double workers = p.device == Device::cpu && p.m * p.n * p.k > 60000 ? threads() : 1;
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

Cost predicted_cost(const KernelInfo& kernel, const Problem& problem) {
  Measured& costs = measured();
  const std::scoped_lock lock(costs.mutex);
  const auto found = costs.us.find(key(kernel, problem));
  if (found != costs.us.end()) return {found->second, true};
  return {prior_us(kernel, problem), false};
}

void record_cost(const KernelInfo& kernel, const Problem& problem, double us) {
  Measured& costs = measured();
  const std::scoped_lock lock(costs.mutex);
  costs.us[key(kernel, problem)] = us;
}

void forget_costs() {
  Measured& costs = measured();
  const std::scoped_lock lock(costs.mutex);
  costs.us.clear();
}

}  // namespace octavo
