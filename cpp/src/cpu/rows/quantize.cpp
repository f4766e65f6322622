#include "cpu/per_isa.hpp"
#include "octavo/registry.hpp"

namespace octavo {

OCTAVO_DECLARE_GENERIC(Status quantize(const QuantizeArgs& args))

#if defined(__x86_64__)
namespace avx512_kernels {
Status quantize_e4m3_row(const QuantizeArgs& args);
Status quantize_int8_row(const QuantizeArgs& args);
}  // namespace avx512_kernels
#endif

void register_quantize_kernels(Registry& registry) {
  KernelInfo generic;
  generic.name = "cpu.generic.quantize";
  generic.op = Op::quantize;
  generic.formats = "float32|bfloat16|float16 -> e4m3|e5m2|int8, tensor|row";
  generic.cost = {.overhead_us = 0.5, .gmacs_per_s = 1.0, .gbytes_per_s = 4.0};
  generic.run.quantize = [](const QuantizeArgs& args) { return OCTAVO_CALL_GENERIC(quantize, args); };
  (void)registry.add(generic);

#if defined(__x86_64__)
  KernelInfo row;
  row.name = "cpu.avx512.quantize.e4m3_row";
  row.op = Op::quantize;
  row.formats = "float32|bfloat16 -> e4m3, row";
  row.cost = {.overhead_us = 0.5, .gmacs_per_s = 1.0, .gbytes_per_s = 12.0};
  row.supported = [] { return cpu_features().avx512; };
  row.run.quantize = avx512_kernels::quantize_e4m3_row;
  (void)registry.add(row);

  row.name = "cpu.avx512.quantize.int8_row";
  row.formats = "float32|bfloat16 -> int8, row";
  row.run.quantize = avx512_kernels::quantize_int8_row;
  (void)registry.add(row);
#endif
}

}  // namespace octavo
