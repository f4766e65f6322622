// Feature interactions: DLRM's triangle of 27 features x 64, and a whole product of the same size.
#include "kernel_benchmarks.hpp"

namespace octavo::benchmarks {

void add_pairwise_dots(const KernelInfo& kernel) {
  constexpr std::int64_t kFeatures = 27, kDepth = 64;
  for (const Pairs pairs : {Pairs::all, Pairs::lower})
    for (const std::int64_t batch : {64, 2048})
      add(kernel, std::string(pairs == Pairs::all ? "all" : "lower") + "/f:27/d:64/batch:" + std::to_string(batch),
          [=, run = kernel.run.pairwise_dots, numerics = kernel.numerics](benchmark::State& state) {
            const std::vector<float> x = normal(batch * kFeatures * kDepth, 1);
            std::vector<float> out(static_cast<std::size_t>(batch * kFeatures * kFeatures));
            PairwiseArgs args;
            args.batch = batch;
            args.x = {x.data(), kFeatures, kDepth, kFeatures * kDepth, kDepth, 1, DType::f32};
            args.y = args.x;
            args.pairs = pairs;
            args.out = out.data();
            args.out_batch_stride = kFeatures * kFeatures;
            args.out_row_stride = kFeatures;
            const std::int64_t products = pairs == Pairs::all ? kFeatures * kFeatures : kFeatures * (kFeatures - 1) / 2;
            if (repeat(state, [&] { return run(args); }))
              share_of(state, 2.0 * static_cast<double>(batch * products * kDepth), multiply_roof(numerics));
          });
}

}  // namespace octavo::benchmarks
