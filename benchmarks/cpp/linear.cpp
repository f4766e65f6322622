// Linear kernels: bias + LayerNorm + hardswish, BF16 in and out, on weights of the kernel's own class.
#include <memory>

#include "kernel_benchmarks.hpp"
#include "octavo/float8.hpp"

namespace octavo::benchmarks {

namespace {

struct Shape {
  std::int64_t m, n, k;
};
constexpr Shape kShapes[] = {{1, 512, 512}, {64, 512, 512}, {1024, 512, 512}};

// Everything one call points to.
struct Layer {
  std::vector<std::uint8_t> codes;
  std::vector<std::uint16_t> x, y;
  std::vector<float> scale, bias, norm_weight, norm_bias;
  std::unique_ptr<PackedWeight> weight;
  LinearArgs args;
};

std::vector<std::uint16_t> as_bf16(const std::vector<float>& values) {
  std::vector<std::uint16_t> codes(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) codes[i] = encode_bf16(values[i]);
  return codes;
}

void encode_weight(Layer& layer, const Shape& shape, Numerics numerics) {
  const std::vector<float> w = normal(shape.n * shape.k, 1);
  const DType format = weight_format(numerics);
  layer.codes.resize(w.size() * size_of(format));
  layer.scale.assign(static_cast<std::size_t>(shape.n), 0.01f);  // 4.48 / 448: every value is in range
  for (std::size_t i = 0; i < w.size(); ++i) {
    if (format == DType::bf16)
      reinterpret_cast<std::uint16_t*>(layer.codes.data())[i] = encode_bf16(w[i]);
    else if (format == DType::e4m3)
      layer.codes[i] = encode_e4m3(w[i] * 100.0f);
    else
      layer.codes[i] = static_cast<std::uint8_t>(static_cast<std::int8_t>(w[i] * 25.0f));
  }
  const float* scale = format == DType::bf16 ? nullptr : layer.scale.data();
  layer.weight =
      std::make_unique<PackedWeight>(layer.codes.data(), scale, shape.n, shape.k, format, weight_scaling(numerics));
}

std::unique_ptr<Layer> layer_for(const Shape& shape, Numerics numerics) {
  auto layer = std::make_unique<Layer>();
  encode_weight(*layer, shape, numerics);
  layer->x = as_bf16(normal(shape.m * shape.k, 2));
  layer->y.resize(static_cast<std::size_t>(shape.m * shape.n));
  layer->bias = normal(shape.n, 3);
  layer->norm_weight = normal(shape.n, 4);
  layer->norm_bias = normal(shape.n, 5);
  LinearArgs& args = layer->args;
  args.x = {layer->x.data(), shape.m, shape.k, shape.k, DType::bf16};
  args.y = {layer->y.data(), shape.m, shape.n, shape.n, DType::bf16};
  args.weight = layer->weight.get();
  args.epilogue.bias = layer->bias.data();
  args.epilogue.norm = NormKind::layer;
  args.epilogue.norm_weight = layer->norm_weight.data();
  args.epilogue.norm_bias = layer->norm_bias.data();
  args.epilogue.activation = Activation::hardswish;
  return layer;
}

}  // namespace

void add_linear(const KernelInfo& kernel) {
  for (const Shape& shape : kShapes) {
    const std::string name =
        "m:" + std::to_string(shape.m) + "/n:" + std::to_string(shape.n) + "/k:" + std::to_string(shape.k);
    add(kernel, name, [shape, run = kernel.run.linear, numerics = kernel.numerics](benchmark::State& state) {
      const auto layer = layer_for(shape, numerics);
      if (const Status first = run(layer->args); !first.ok()) {  // layouts are made here
        state.SkipWithError(first.message().c_str());
        return;
      }
      if (!repeat(state, [&] { return run(layer->args); })) return;
      const std::int64_t macs = shape.m * shape.n * shape.k;
      state.SetItemsProcessed(state.iterations() * macs);
      share_of(state, 2.0 * static_cast<double>(macs), multiply_roof(numerics));
    });
  }
}

}  // namespace octavo::benchmarks
