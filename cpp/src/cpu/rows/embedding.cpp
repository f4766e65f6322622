#include "cpu/per_isa.hpp"
#include "octavo/registry.hpp"

namespace octavo {

OCTAVO_DECLARE_GENERIC(Status bag_forward(const BagForwardArgs& args))
OCTAVO_DECLARE_GENERIC(Status bag_backward(const BagBackwardArgs& args))

void register_embedding_kernels(Registry& registry) {
  KernelInfo forward;
  forward.name = "cpu.generic.bag_forward";
  forward.op = Op::bag_forward;
  forward.formats = "float32|bfloat16|e4m3|int8 -> float32|bfloat16";
  forward.cost = {.overhead_us = 1.0, .gmacs_per_s = 4.0, .gbytes_per_s = 6.0};
  forward.run.bag_forward = [](const BagForwardArgs& args) { return OCTAVO_CALL_GENERIC(bag_forward, args); };
  (void)registry.add(forward);

  KernelInfo backward;
  backward.name = "cpu.generic.bag_backward";
  backward.op = Op::bag_backward;
  backward.formats = "float32 -> float32";
  backward.cost = {.overhead_us = 2.0, .gmacs_per_s = 2.0, .gbytes_per_s = 4.0};
  backward.run.bag_backward = [](const BagBackwardArgs& args) { return OCTAVO_CALL_GENERIC(bag_backward, args); };
  (void)registry.add(backward);
}

}  // namespace octavo
