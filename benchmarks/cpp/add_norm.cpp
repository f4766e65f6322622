// The end of a Wukong layer: 16 tokens of its FMB, 16 of its LCB that lie across, the residual, LayerNorm over 32.
#include "kernel_benchmarks.hpp"

namespace octavo::benchmarks {

void add_add_norm(const KernelInfo& kernel) {
  constexpr std::int64_t kTokens = 32, kHalf = kTokens / 2, kDepth = 32;
  for (const bool transposed : {false, true})
    for (const std::int64_t batch : {64, 2048})
      add(kernel, std::string(transposed ? "both" : "rows") + "/t:32/d:32/batch:" + std::to_string(batch),
          [=, run = kernel.run.add_norm](benchmark::State& state) {
            const std::vector<float> blocks = normal(batch * kHalf * kDepth, 1),
                                     maps = normal(batch * kHalf * kDepth, 2);
            const std::vector<float> x = normal(batch * kTokens * kDepth, 3);
            std::vector<float> out(x.size()), out_transposed(x.size());
            const BatchView parts[] = {{blocks.data(), kHalf, kDepth, kHalf * kDepth, kDepth, 1, DType::f32},
                                       {maps.data(), kHalf, kDepth, kHalf * kDepth, 1, kHalf, DType::f32}};
            AddNormArgs args;
            args.batch = batch;
            args.parts = parts;
            args.part_count = 2;
            args.residual = {x.data(), kTokens, kDepth, kTokens * kDepth, kDepth, 1, DType::f32};
            args.norm = NormKind::layer;
            args.out = out.data();
            if (transposed) args.out_transposed = out_transposed.data();
            const auto bytes = static_cast<std::int64_t>(x.size() * sizeof(float)) * (transposed ? 4 : 3);
            if (repeat(state, [&] { return run(args); })) share_of(state, static_cast<double>(bytes), copy_roof(bytes));
          });
}

}  // namespace octavo::benchmarks
