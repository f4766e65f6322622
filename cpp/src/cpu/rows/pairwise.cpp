#include "cpu/per_isa.hpp"
#include "octavo/registry.hpp"

namespace octavo {

OCTAVO_DECLARE_GENERIC(Status pairwise_dots_fp32(const PairwiseArgs& args))
OCTAVO_DECLARE_GENERIC(Status pairwise_dots_bf16(const PairwiseArgs& args))

#if defined(__x86_64__)
namespace avx512_kernels {
Status pairwise_dots_bf16(const PairwiseArgs& args);
}  // namespace avx512_kernels
#endif

void register_pairwise_kernels(Registry& registry) {
  KernelInfo row;
  row.op = Op::pairwise_dots;
  row.cost = {.overhead_us = 1.0, .gmacs_per_s = 20.0, .gbytes_per_s = 8.0};

  row.name = "cpu.generic.pairwise_dots.fp32";
  row.numerics = Numerics::fp32;
  row.formats = "fp32";
  row.run.pairwise_dots = [](const PairwiseArgs& args) { return OCTAVO_CALL_GENERIC(pairwise_dots_fp32, args); };
  (void)registry.add(row);

  row.name = "cpu.generic.pairwise_dots.bf16";
  row.numerics = Numerics::bf16;
  row.formats = "bf16";
  row.run.pairwise_dots = [](const PairwiseArgs& args) { return OCTAVO_CALL_GENERIC(pairwise_dots_bf16, args); };
  (void)registry.add(row);

#if defined(__x86_64__)
  row.name = "cpu.avx512.pairwise_dots.bf16";
  row.cost.gmacs_per_s = 60.0;
  row.supported = [] { return cpu_features().avx512_bf16; };
  row.run.pairwise_dots = avx512_kernels::pairwise_dots_bf16;
  (void)registry.add(row);
#endif
}

}  // namespace octavo
