#include "cpu/per_isa.hpp"
#include "octavo/registry.hpp"

namespace octavo {

OCTAVO_DECLARE_GENERIC(Status bag_forward(const BagForwardArgs& args))
OCTAVO_DECLARE_GENERIC(Status row_lookup(const RowLookupArgs& args))
OCTAVO_DECLARE_GENERIC(Status bag_backward(const BagBackwardArgs& args))

#if defined(__x86_64__)
namespace avx512_kernels {
Status bag_forward(const BagForwardArgs& args);
Status bag_forward_vbmi(const BagForwardArgs& args);
Status row_lookup(const RowLookupArgs& args);
Status row_lookup_vbmi(const RowLookupArgs& args);
Status bag_backward(const BagBackwardArgs& args);
}  // namespace avx512_kernels
#endif

void register_embedding_kernels(Registry& registry) {
  KernelInfo forward;
  forward.name = "cpu.generic.bag_forward";
  forward.op = Op::bag_forward;
  forward.formats = "float32|float16|bfloat16|e4m3|int8|int4 -> float32|bfloat16";
  forward.cost = {.overhead_us = 1.0, .gmacs_per_s = 4.0, .gbytes_per_s = 6.0};
  forward.run.bag_forward = [](const BagForwardArgs& args) { return OCTAVO_CALL_GENERIC(bag_forward, args); };
  (void)registry.add(forward);
  KernelInfo lookup = forward;
  lookup.name = "cpu.generic.row_lookup";
  lookup.op = Op::row_lookup;
  lookup.run = {};
  lookup.run.row_lookup = [](const RowLookupArgs& args) { return OCTAVO_CALL_GENERIC(row_lookup, args); };
  (void)registry.add(lookup);

#if defined(__x86_64__)
  KernelInfo forward512 = forward;
  forward512.name = "cpu.avx512.bag_forward";
  forward512.cost = {.overhead_us = 1.0, .gmacs_per_s = 8.0, .gbytes_per_s = 12.0};
  forward512.supported = [] { return cpu_features().avx512; };
  forward512.run.bag_forward = avx512_kernels::bag_forward;
  (void)registry.add(forward512);
  KernelInfo lookup512 = lookup;
  lookup512.name = "cpu.avx512.row_lookup";
  lookup512.cost = forward512.cost;
  lookup512.supported = forward512.supported;
  lookup512.run.row_lookup = avx512_kernels::row_lookup;
  (void)registry.add(lookup512);

  KernelInfo vbmi = forward512;
  vbmi.name = "cpu.avx512_vbmi.bag_forward";
  vbmi.supported = [] { return cpu_features().avx512_vbmi; };
  vbmi.run.bag_forward = avx512_kernels::bag_forward_vbmi;
  (void)registry.add(vbmi);
  KernelInfo lookup_vbmi = lookup512;
  lookup_vbmi.name = "cpu.avx512_vbmi.row_lookup";
  lookup_vbmi.supported = vbmi.supported;
  lookup_vbmi.run.row_lookup = avx512_kernels::row_lookup_vbmi;
  (void)registry.add(lookup_vbmi);
#endif

  KernelInfo backward;
  backward.name = "cpu.generic.bag_backward";
  backward.op = Op::bag_backward;
  backward.formats = "float32|float16|bfloat16|e4m3|int8|int4 -> float32";
  backward.cost = {.overhead_us = 2.0, .gmacs_per_s = 2.0, .gbytes_per_s = 4.0};
  backward.run.bag_backward = [](const BagBackwardArgs& args) { return OCTAVO_CALL_GENERIC(bag_backward, args); };
  (void)registry.add(backward);

#if defined(__x86_64__)
  KernelInfo backward512 = backward;
  backward512.name = "cpu.avx512.bag_backward";
  backward512.cost = {.overhead_us = 2.0, .gmacs_per_s = 4.0, .gbytes_per_s = 8.0};
  backward512.supported = [] { return cpu_features().avx512; };
  backward512.run.bag_backward = avx512_kernels::bag_backward;
  (void)registry.add(backward512);
#endif
}

}  // namespace octavo
