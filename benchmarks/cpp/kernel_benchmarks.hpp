// Benchmarks of one registry row; main.cpp walks the registry and calls the one for the row's op.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "octavo/registry.hpp"

namespace octavo::benchmarks {

void add_linear(const KernelInfo& kernel);
void add_quantize(const KernelInfo& kernel);
void add_bag_forward(const KernelInfo& kernel);
void add_row_lookup(const KernelInfo& kernel);
void add_bag_backward(const KernelInfo& kernel);
void add_linear_epilogue_backward(const KernelInfo& kernel);
void add_linear_grad_input(const KernelInfo& kernel);
void add_linear_grad_weight(const KernelInfo& kernel);
void add_pairwise_dots(const KernelInfo& kernel);
void add_add_norm(const KernelInfo& kernel);

// Registers `body(state)` as "<kernel>/<shape>", timed by the wall clock. Rows this machine cannot run, and CUDA rows,
// stay in the list and say why they did not run.
template <class Body>
void add(const KernelInfo& kernel, const std::string& shape, Body body) {
  const bool runs = kernel.device == Device::cpu && kernel.is_supported();
  benchmark::RegisterBenchmark((kernel.name + "/" + shape).c_str(),
                               [runs, body](benchmark::State& state) {
                                 if (runs)
                                   body(state);
                                 else
                                   state.SkipWithError("not supported on this machine");
                               })
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}

// Runs `call` -> Status until the state has enough; stops at the first error.
template <class Call>
bool repeat(benchmark::State& state, Call call) {
  for (auto _ : state) {
    if (const Status status = call(); !status.ok()) {
      state.SkipWithError(status.message().c_str());
      return false;
    }
  }
  return true;
}

// Adds "roof_share": what was done per second (in the roof's unit, e.g. bytes) over the roof.
inline void share_of(benchmark::State& state, double per_iteration, double roof_per_second) {
  if (roof_per_second <= 0) return;
  state.counters["roof_share"] = benchmark::Counter(
      per_iteration * static_cast<double>(state.iterations()) / roof_per_second, benchmark::Counter::kIsRate);
}

// Measured once per process, on threads() threads.
double copy_roof(std::int64_t bytes);        // bytes/s of the faster copy of that working set (bytes in + out)
double multiply_roof(Numerics numerics);     // FLOP/s
double gather_roof(std::int64_t row_bytes);  // rows/s, table of 512 MB

// A format's word in KernelInfo::formats.
inline const char* word(DType dtype) {
  switch (dtype) {
    case DType::f32: return "float32";
    case DType::f16: return "float16";
    case DType::bf16: return "bfloat16";
    case DType::u4: return "int4";
    case DType::e4m3: return "e4m3";
    case DType::e5m2: return "e5m2";
    default: return "int8";
  }
}

inline bool names(const KernelInfo& kernel, DType dtype) {
  return kernel.formats.empty() || kernel.formats.find(word(dtype)) != std::string::npos;
}

inline std::vector<float> normal(std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = distribution(generator);
  return values;
}

}  // namespace octavo::benchmarks
