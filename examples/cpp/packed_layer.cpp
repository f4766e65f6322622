// One layer of a model in C++: weights packed in several numerics classes, every kernel checked and timed on this
// machine, the fastest that is accurate enough chosen and run.
//
//   y = hardswish(LayerNorm(x W^T + bias)), x [M, K], W [N, K], y [M, N], FP32 outside
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "octavo/dispatch.hpp"
#include "octavo/float8.hpp"
#include "octavo/linear.hpp"
#include "octavo/quantize.hpp"
#include "octavo/registry.hpp"

namespace {

constexpr std::int64_t kM = 64, kN = 512, kK = 512;
constexpr double kLeastSqnrDb = 20.0;
constexpr octavo::Numerics kClasses[] = {octavo::Numerics::bf16, octavo::Numerics::e4m3_row,
                                         octavo::Numerics::e4m3_weight_only, octavo::Numerics::int8_dynamic};

using Floats = std::vector<float>;

Floats normal(std::int64_t count, float deviation, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution(0.0f, deviation);
  Floats values(static_cast<std::size_t>(count));
  for (float& v : values) v = distribution(generator);
  return values;
}

struct Layer {
  Floats weight = normal(kN * kK, 0.05f, 1), bias = normal(kN, 0.1f, 2);
  Floats norm_weight = normal(kN, 1.0f, 3), norm_bias = normal(kN, 0.1f, 4);
};

// The same layer as plain loops.
void plain(const Layer& layer, const Floats& x, Floats& y) {
  for (std::int64_t m = 0; m < kM; ++m) {
    float* row = &y[static_cast<std::size_t>(m * kN)];
    double mean = 0, square = 0;
    for (std::int64_t n = 0; n < kN; ++n) {
      row[n] = layer.bias[static_cast<std::size_t>(n)];
      for (std::int64_t k = 0; k < kK; ++k)
        row[n] += x[static_cast<std::size_t>(m * kK + k)] * layer.weight[static_cast<std::size_t>(n * kK + k)];
      mean += row[n] / kN;
    }
    for (std::int64_t n = 0; n < kN; ++n) square += (row[n] - mean) * (row[n] - mean) / kN;
    for (std::int64_t n = 0; n < kN; ++n) {
      const auto i = static_cast<std::size_t>(n);
      const auto z =
          static_cast<float>((row[n] - mean) / std::sqrt(square + 1e-5)) * layer.norm_weight[i] + layer.norm_bias[i];
      row[n] = z * std::clamp(z + 3.0f, 0.0f, 6.0f) / 6.0f;
    }
  }
}

// Weight codes of one class, with the layouts that kernels make of them at the first call.
struct Packed {
  std::vector<std::uint8_t> codes;
  Floats scale;
  std::unique_ptr<octavo::PackedWeight> weight;
};

octavo::Status pack(Layer& layer, octavo::Numerics numerics, Packed& out) {
  const octavo::DType format = octavo::weight_format(numerics);
  out.codes.resize(layer.weight.size() * octavo::size_of(format));
  if (format == octavo::DType::bf16) {
    auto* codes = reinterpret_cast<std::uint16_t*>(out.codes.data());
    for (std::size_t i = 0; i < layer.weight.size(); ++i) codes[i] = octavo::encode_bf16(layer.weight[i]);
  } else {
    out.scale.resize(kN);
    const octavo::QuantizeArgs args{.x = {layer.weight.data(), kN, kK, kK, octavo::DType::f32},
                                    .format = format,
                                    .scaling = octavo::Scaling::row,
                                    .codes = out.codes.data(),
                                    .scale = out.scale.data()};
    if (octavo::Status status = octavo::validate(args); !status.ok()) return status;
    const octavo::KernelInfo* kernel = octavo::Registry::instance().find("cpu.generic.quantize");
    if (octavo::Status status = kernel->run.quantize(args); !status.ok()) return status;
  }
  out.weight = std::make_unique<octavo::PackedWeight>(out.codes.data(), out.scale.empty() ? nullptr : out.scale.data(),
                                                      kN, kK, format);
  return {};
}

octavo::LinearArgs arguments(Layer& layer, Floats& x, const Packed& packed, Floats& y) {
  octavo::LinearArgs args;
  args.x = {x.data(), kM, kK, kK, octavo::DType::f32};
  args.y = {y.data(), kM, kN, kN, octavo::DType::f32};
  args.weight = packed.weight.get();
  args.epilogue.bias = layer.bias.data();
  args.epilogue.norm = octavo::NormKind::layer;
  args.epilogue.norm_weight = layer.norm_weight.data();
  args.epilogue.norm_bias = layer.norm_bias.data();
  args.epilogue.activation = octavo::Activation::hardswish;
  return args;
}

double sqnr_db(const Floats& reference, const Floats& y) {
  double signal = 0, noise = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    signal += double{reference[i]} * reference[i];
    noise += (double{y[i]} - reference[i]) * (double{y[i]} - reference[i]);
  }
  return 10 * std::log10(signal / noise);
}

// Microseconds of the fastest of `repeats` calls.
template <class Call>
double best_us(int repeats, const Call& call) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    call();
    best = std::min(best, std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

int failed(const octavo::Status& status) {
  std::fprintf(stderr, "%s\n", status.message().c_str());
  return 1;
}

}  // namespace

int main() {
  Layer layer;
  Floats x = normal(kM * kK, 1.0f, 5), reference(kM * kN), y(kM * kN);
  const double plain_us = best_us(2, [&] { plain(layer, x, reference); });
  std::printf("%s, %lld x %lld x %lld; plain FP32 loops: %.0f us\n", octavo::to_string(octavo::active_isa()),
              static_cast<long long>(kM), static_cast<long long>(kN), static_cast<long long>(kK), plain_us);

  const octavo::Problem problem{
      octavo::Op::linear,  kM,          kN, kK, octavo::DType::f32, octavo::DType::f32, "bias+layer+hardswish",
      octavo::Device::cpu, std::nullopt};
  Packed packed[std::size(kClasses)];
  octavo::Evidence evidence;
  for (std::size_t i = 0; i < std::size(kClasses); ++i) {
    if (octavo::Status status = pack(layer, kClasses[i], packed[i]); !status.ok()) return failed(status);
    // No kernel may be chosen before it was checked on this machine; what is right is the program's own to say.
    for (octavo::KernelInfo* kernel : octavo::Registry::instance().all()) {
      if (kernel->op != octavo::Op::linear || kernel->numerics != kClasses[i] || !kernel->is_supported()) continue;
      const octavo::LinearArgs args = arguments(layer, x, packed[i], y);
      if (octavo::Status status = kernel->run.linear(args); !status.ok()) return failed(status);
      const double sqnr = sqnr_db(reference, y);
      kernel->state = sqnr >= kLeastSqnrDb ? octavo::Qualification::qualified : octavo::Qualification::quarantined;
      const double us = best_us(20, [&] { (void)kernel->run.linear(args); });
      octavo::record_cost(*kernel, problem, us);
      evidence[kClasses[i]].sqnr_db = sqnr;
      std::printf("%-38s %6.1f dB %8.1f us\n", kernel->name.c_str(), sqnr, us);
    }
  }

  octavo::Requirement requirement;
  requirement.min_sqnr_db = kLeastSqnrDb;
  const octavo::Decision decision = octavo::choose(problem, requirement, evidence);
  const octavo::Candidate* chosen = decision.chosen();
  if (chosen == nullptr) {
    std::fprintf(stderr, "no kernel reaches %.0f dB here\n", kLeastSqnrDb);
    return 1;
  }
  const auto at = std::find(std::begin(kClasses), std::end(kClasses), chosen->kernel->numerics) - std::begin(kClasses);
  std::fill(y.begin(), y.end(), 0.0f);
  if (octavo::Status status = chosen->kernel->run.linear(arguments(layer, x, packed[at], y)); !status.ok())
    return failed(status);
  const double sqnr = sqnr_db(reference, y);
  std::printf("chosen: %s, %s: %.1f dB, %.0fx the plain loops\n", chosen->kernel->name.c_str(), decision.reason.c_str(),
              sqnr, plain_us / chosen->predicted_us);
  return sqnr >= kLeastSqnrDb ? 0 : 1;
}
