// Gradients of a linear layer: BF16 in, grad_x in BF16; the epilogue is LayerNorm + hardswish.
#include <memory>

#include "kernel_benchmarks.hpp"
#include "octavo/float8.hpp"

namespace octavo::benchmarks {

namespace {

struct Shape {
  std::int64_t m, n, k;
};
constexpr Shape kShapes[] = {{64, 512, 512}, {1024, 64, 256}, {1024, 512, 512}};

std::vector<std::uint16_t> bf16_normal(std::int64_t count, unsigned seed) {
  std::vector<std::uint16_t> codes;
  for (const float v : normal(count, seed)) codes.push_back(encode_bf16(v));
  return codes;
}

std::string name_of(const Shape& s) {
  return "m:" + std::to_string(s.m) + "/n:" + std::to_string(s.n) + "/k:" + std::to_string(s.k);
}

std::size_t size(std::int64_t count) { return static_cast<std::size_t>(count); }

}  // namespace

void add_linear_grad_input(const KernelInfo& kernel) {
  for (const Shape& s : kShapes)
    add(kernel, name_of(s), [s, run = kernel.run.grad_input, numerics = kernel.numerics](benchmark::State& state) {
      std::vector<std::uint16_t> grad = bf16_normal(s.m * s.n, 1), out(size(s.m * s.k));
      const DType format = weight_format(numerics);
      std::vector<std::uint8_t> codes(size(s.n * s.k) * size_of(format), 0x3f);  // finite and normal in every format
      const std::vector<float> scale(size(s.n), 0.01f);
      const PackedWeight weight(codes.data(), format == DType::bf16 ? nullptr : scale.data(), s.n, s.k, format);
      const GradInputArgs args{
          {grad.data(), s.m, s.n, s.n, DType::bf16}, &weight, {out.data(), s.m, s.k, s.k, DType::bf16}};
      if (const Status first = run(args); !first.ok()) {  // layouts are made here
        state.SkipWithError(first.message().c_str());
        return;
      }
      if (!repeat(state, [&] { return run(args); })) return;
      share_of(state, 2.0 * static_cast<double>(s.m * s.n * s.k), multiply_roof(numerics));
    });
}

void add_linear_grad_weight(const KernelInfo& kernel) {
  for (const Shape& s : kShapes)
    add(kernel, name_of(s), [s, run = kernel.run.grad_weight, numerics = kernel.numerics](benchmark::State& state) {
      std::vector<std::uint16_t> grad = bf16_normal(s.m * s.n, 1), x = bf16_normal(s.m * s.k, 2);
      std::vector<float> out(size(s.n * s.k));
      const GradWeightArgs args{{grad.data(), s.m, s.n, s.n, DType::bf16},
                                {x.data(), s.m, s.k, s.k, DType::bf16},
                                {out.data(), s.n, s.k, s.k, DType::f32}};
      if (!repeat(state, [&] { return run(args); })) return;
      share_of(state, 2.0 * static_cast<double>(s.m * s.n * s.k), multiply_roof(numerics));
    });
}

void add_linear_epilogue_backward(const KernelInfo& kernel) {
  for (const Shape& s : kShapes)
    add(kernel, name_of(s), [s, run = kernel.run.epilogue_backward](benchmark::State& state) {
      std::vector<std::uint16_t> z = bf16_normal(s.m * s.n, 1), grad = bf16_normal(s.m * s.n, 2), out(size(s.m * s.n));
      const std::vector<float> weight = normal(s.n, 3), bias = normal(s.n, 4);
      std::vector<float> sums(size(3 * s.n));
      EpilogueBackwardArgs args;
      args.z = {z.data(), s.m, s.n, s.n, DType::bf16};
      args.grad = {grad.data(), s.m, s.n, s.n, DType::bf16};
      args.epilogue.norm = NormKind::layer;
      args.epilogue.norm_weight = weight.data();
      args.epilogue.norm_bias = bias.data();
      args.epilogue.activation = Activation::hardswish;
      args.grad_z = {out.data(), s.m, s.n, s.n, DType::bf16};
      args.grad_bias = sums.data();
      args.grad_norm_weight = sums.data() + s.n;
      args.grad_norm_bias = sums.data() + 2 * s.n;
      if (!repeat(state, [&] { return run(args); })) return;
      const std::int64_t bytes = 6 * s.m * s.n;  // z and grad in, grad_z out
      state.SetBytesProcessed(state.iterations() * bytes);
      share_of(state, static_cast<double>(bytes), copy_roof(bytes));
    });
}

}  // namespace octavo::benchmarks
