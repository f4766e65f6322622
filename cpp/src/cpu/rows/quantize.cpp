#include "cpu/per_isa.hpp"
#include "octavo/registry.hpp"

namespace octavo {

OCTAVO_DECLARE_GENERIC(Status quantize(const QuantizeArgs& args))
OCTAVO_DECLARE_GENERIC(Status quantize_block(const QuantizeArgs& args))
OCTAVO_DECLARE_GENERIC(Status quantize_mx(const QuantizeArgs& args))

#if defined(__x86_64__)
namespace avx512_kernels {
Status quantize_e4m3_row(const QuantizeArgs& args);
Status quantize_e5m2_row(const QuantizeArgs& args);
Status quantize_int8_row(const QuantizeArgs& args);
Status quantize_e4m3_row_vbmi(const QuantizeArgs& args);
Status quantize_e5m2_row_vbmi(const QuantizeArgs& args);
Status quantize_int8_row_vbmi(const QuantizeArgs& args);
}  // namespace avx512_kernels
#endif

void register_quantize_kernels(Registry& registry) {
  const auto add = [&](const char* name, const char* formats, double gbytes_per_s, QuantizeLauncher run,
                       bool (*supported)()) {
    KernelInfo row;
    row.name = name;
    row.op = Op::quantize;
    row.formats = formats;
    row.cost = {.overhead_us = 0.5, .gmacs_per_s = 1.0, .gbytes_per_s = gbytes_per_s};
    if (supported != nullptr) row.supported = supported;
    row.run.quantize = run;
    (void)registry.add(row);
  };
  add(
      "cpu.generic.quantize", "float32|bfloat16|float16 -> e4m3|e5m2|int8, tensor|row", 4.0,
      [](const QuantizeArgs& args) { return OCTAVO_CALL_GENERIC(quantize, args); }, nullptr);
  add(
      "cpu.generic.quantize_block", "float32|bfloat16|float16 -> e4m3|e5m2|int8, block_1x128|block_128x128", 4.0,
      [](const QuantizeArgs& args) { return OCTAVO_CALL_GENERIC(quantize_block, args); }, nullptr);
  add(
      "cpu.generic.quantize_mx", "float32|bfloat16|float16 -> e4m3|e5m2, mx", 4.0,
      [](const QuantizeArgs& args) { return OCTAVO_CALL_GENERIC(quantize_mx, args); }, nullptr);

#if defined(__x86_64__)
  const auto avx512 = [] { return cpu_features().avx512; };
  add("cpu.avx512.quantize.e4m3_row", "float32|bfloat16|float16 -> e4m3, row", 20.0, avx512_kernels::quantize_e4m3_row,
      avx512);
  add("cpu.avx512.quantize.e5m2_row", "float32|bfloat16|float16 -> e5m2, row", 20.0, avx512_kernels::quantize_e5m2_row,
      avx512);
  add("cpu.avx512.quantize.int8_row", "float32|bfloat16|float16 -> int8, row", 20.0, avx512_kernels::quantize_int8_row,
      avx512);
  const auto vbmi = [] { return cpu_features().avx512_vbmi; };
  add("cpu.avx512_vbmi.quantize.e4m3_row", "float32|bfloat16|float16 -> e4m3, row", 25.0,
      avx512_kernels::quantize_e4m3_row_vbmi, vbmi);
  add("cpu.avx512_vbmi.quantize.e5m2_row", "float32|bfloat16|float16 -> e5m2, row", 25.0,
      avx512_kernels::quantize_e5m2_row_vbmi, vbmi);
  add("cpu.avx512_vbmi.quantize.int8_row", "float32|bfloat16|float16 -> int8, row", 25.0,
      avx512_kernels::quantize_int8_row_vbmi, vbmi);
#endif
}

}  // namespace octavo
