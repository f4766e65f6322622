// Google Benchmark over the one table of kernels: a kernel that is registered has a row here.
#include <benchmark/benchmark.h>

#include <map>
#include <utility>

#include "kernel_benchmarks.hpp"
#include "octavo/threading.hpp"
#include "roofs.hpp"

namespace octavo::benchmarks {

namespace {

constexpr double kRoofMs = 60;

template <class Key, class Measure>
double once(std::map<Key, double>& known, const Key& key, Measure measure) {
  const auto found = known.find(key);
  return found != known.end() ? found->second : known[key] = measure();
}

}  // namespace

double copy_roof(std::int64_t bytes) {
  static std::map<std::int64_t, double> known;
  return once(known, bytes, [&] {
    const double cached = octavo_roof_copy(threads(), bytes / 2, false, kRoofMs);
    const double past = octavo_roof_copy(threads(), bytes / 2, true, kRoofMs);
    return 1e9 * (cached > past ? cached : past);
  });
}

double multiply_roof(Numerics numerics) {
  static std::map<Numerics, double> known;
  return once(known, numerics, [&] {
    switch (numerics) {
      case Numerics::fp32: return 1e9 * octavo_roof_fp32(threads(), kRoofMs);
      case Numerics::int8_dynamic: return 1e9 * octavo_roof_int8(threads(), kRoofMs);
      default: return 1e9 * octavo_roof_bf16(threads(), kRoofMs);  // E4M3 products run at the BF16 rate
    }
  });
}

double gather_roof(std::int64_t row_bytes) {
  static std::map<std::int64_t, double> known;
  return once(known, row_bytes, [&] { return 1e6 * octavo_roof_gather(threads(), 512 << 20, row_bytes, kRoofMs); });
}

namespace {

void add_all() {
  for (const KernelInfo* kernel : Registry::instance().all()) {
    switch (kernel->op) {
      case Op::linear: add_linear(*kernel); break;
      case Op::quantize: add_quantize(*kernel); break;
      case Op::bag_forward: add_bag_forward(*kernel); break;
      case Op::row_lookup: add_row_lookup(*kernel); break;
      case Op::bag_backward: add_bag_backward(*kernel); break;
      case Op::linear_epilogue_backward: add_linear_epilogue_backward(*kernel); break;
      case Op::linear_grad_input: add_linear_grad_input(*kernel); break;
      case Op::linear_grad_weight: add_linear_grad_weight(*kernel); break;
      case Op::pairwise_dots: add_pairwise_dots(*kernel); break;
      case Op::add_norm: add_add_norm(*kernel); break;
    }
  }
}

}  // namespace

}  // namespace octavo::benchmarks

int main(int argc, char** argv) {
  octavo::benchmarks::add_all();
  benchmark::AddCustomContext("isa", octavo::to_string(octavo::active_isa()));
  benchmark::AddCustomContext("threads", std::to_string(octavo::threads()));
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
