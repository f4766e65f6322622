// Quantizers: row-wise, or in blocks where the kernel does those, from FP32 and BF16, to the formats the row names; in
// cache and out of it.
#include "kernel_benchmarks.hpp"
#include "octavo/float8.hpp"

namespace octavo::benchmarks {

namespace {

struct Shape {
  std::int64_t m, k;
};
constexpr Shape kShapes[] = {{64, 512}, {1024, 1024}, {16384, 1024}};
constexpr DType kSources[] = {DType::f32, DType::bf16}, kFormats[] = {DType::e4m3, DType::e5m2, DType::i8};

Scaling scaling_of(const KernelInfo& kernel) {
  const auto does = [&](const char* what) { return kernel.name.find(what) != std::string::npos; };
  return does("quantize_block") ? Scaling::block_1x128 : does("quantize_mx") ? Scaling::mx : Scaling::row;
}

void measure(benchmark::State& state, QuantizeLauncher run, Shape shape, DType source, DType format, Scaling scaling) {
  const std::vector<float> values = normal(shape.m * shape.k, 6);
  std::vector<std::uint16_t> halves;
  if (source == DType::bf16)
    for (const float value : values) halves.push_back(encode_bf16(value));
  void* x = source == DType::bf16 ? static_cast<void*>(halves.data()) : const_cast<float*>(values.data());
  std::vector<std::uint8_t> codes(values.size());
  const std::int64_t width = scaling == Scaling::row ? shape.k : scaling == Scaling::mx ? 32 : 128;
  std::vector<float> scale(static_cast<std::size_t>(shape.m * (shape.k / width)));
  std::vector<std::uint8_t> exponents(scale.size());
  QuantizeArgs args{{x, shape.m, shape.k, shape.k, source}, format, scaling};
  args.scale_e8m0 = exponents.data();
  args.codes = codes.data();
  args.scale = scale.data();
  if (!repeat(state, [&] { return run(args); })) return;
  const auto bytes = static_cast<std::int64_t>(values.size() * (size_of(source) + 1) + scale.size() * sizeof(float));
  state.SetBytesProcessed(state.iterations() * bytes);
  share_of(state, static_cast<double>(bytes), copy_roof(bytes));
}

}  // namespace

void add_quantize(const KernelInfo& kernel) {
  for (const DType source : kSources)
    for (const DType format : kFormats)
      for (const Shape& shape : kShapes) {
        if (!names(kernel, source) || !names(kernel, format)) continue;
        const std::string name = std::string(word(source)) + "_to_" + word(format) + "/m:" + std::to_string(shape.m) +
                                 "/k:" + std::to_string(shape.k);
        add(kernel, name, [=, run = kernel.run.quantize, scaling = scaling_of(kernel)](benchmark::State& state) {
          measure(state, run, shape, source, format, scaling);
        });
      }
}

}  // namespace octavo::benchmarks
