#include "cpu/per_isa.hpp"
#include "octavo/registry.hpp"

namespace octavo {

OCTAVO_DECLARE_GENERIC(Status add_norm(const AddNormArgs& args))
OCTAVO_DECLARE_GENERIC(Status add_norm_backward(const AddNormBackwardArgs& args))

void register_add_norm_kernels(Registry& registry) {
  KernelInfo row;
  row.name = "cpu.generic.add_norm";
  row.op = Op::add_norm;
  row.formats = "float32|bfloat16";
  row.cost = {.overhead_us = 1.0, .gmacs_per_s = 1.0, .gbytes_per_s = 8.0};
  row.run.add_norm = [](const AddNormArgs& args) { return OCTAVO_CALL_GENERIC(add_norm, args); };
  row.run.add_norm_backward = [](const AddNormBackwardArgs& args) {
    return OCTAVO_CALL_GENERIC(add_norm_backward, args);
  };
  (void)registry.add(row);
}

}  // namespace octavo
