#include <limits>
#include <string_view>

#include "cpu/per_isa.hpp"
#include "octavo/registry.hpp"

namespace octavo {

OCTAVO_DECLARE_GENERIC(void linear_bf16(const LinearArgs& args))
OCTAVO_DECLARE_GENERIC(void linear_e4m3_row(const LinearArgs& args))
OCTAVO_DECLARE_GENERIC(void linear_e4m3_block(const LinearArgs& args))
OCTAVO_DECLARE_GENERIC(void linear_e4m3_weight_only(const LinearArgs& args))
OCTAVO_DECLARE_GENERIC(void linear_int8_dynamic(const LinearArgs& args))

#if defined(__x86_64__)
namespace avx2_kernels {
void linear_int8_dynamic(const LinearArgs& args);
}
namespace avx512_kernels {
void linear_bf16(const LinearArgs& args);
void linear_e4m3_row(const LinearArgs& args);
void linear_e4m3_weight_only(const LinearArgs& args);
void linear_int8_dynamic(const LinearArgs& args);
}  // namespace avx512_kernels
namespace amx_kernels {
void linear_bf16(const LinearArgs& args);
void linear_e4m3_row(const LinearArgs& args);
void linear_e4m3_weight_only(const LinearArgs& args);
void linear_int8_dynamic(const LinearArgs& args);
}  // namespace amx_kernels
#endif

namespace {

KernelInfo row(const char* arch, Numerics numerics, CostPrior cost, LinearLauncher run) {
  KernelInfo info;
  info.name = std::string("cpu.") + arch + ".linear." + to_string(numerics);
  info.op = Op::linear;
  info.numerics = numerics;
  info.takes_codes = true;
  info.cost = cost;
  info.run.linear = run;
  return info;
}

template <Numerics numerics, auto run>
Status checked(const LinearArgs& args) {
  if (Status status = validate(args, numerics); !status.ok()) return status;
  if (args.epilogue.residual_rows != nullptr)
    return Status::unsupported("linear: residual_rows is for CUDA; on a CPU gather the rows of residual before");
  run(args);
  return {};
}

void generic_bf16(const LinearArgs& args) { OCTAVO_CALL_GENERIC(linear_bf16, args); }
void generic_e4m3_row(const LinearArgs& args) { OCTAVO_CALL_GENERIC(linear_e4m3_row, args); }
void generic_e4m3_block(const LinearArgs& args) { OCTAVO_CALL_GENERIC(linear_e4m3_block, args); }
void generic_e4m3_weight_only(const LinearArgs& args) { OCTAVO_CALL_GENERIC(linear_e4m3_weight_only, args); }
void generic_int8_dynamic(const LinearArgs& args) { OCTAVO_CALL_GENERIC(linear_int8_dynamic, args); }

}  // namespace

void register_linear_kernels(Registry& registry) {
  constexpr CostPrior kGeneric{.overhead_us = 1.0, .gmacs_per_s = 25.0, .gbytes_per_s = 10.0};
  (void)registry.add(row("generic", Numerics::bf16, kGeneric, checked<Numerics::bf16, generic_bf16>));
  (void)registry.add(row("generic", Numerics::e4m3_row, kGeneric, checked<Numerics::e4m3_row, generic_e4m3_row>));
  (void)registry.add(row("generic", Numerics::e4m3_weight_only, kGeneric,
                         checked<Numerics::e4m3_weight_only, generic_e4m3_weight_only>));
  // Hopper's class, so that plans and tests mean the same everywhere: no CPU gains by it.
  constexpr CostPrior kPasses{.overhead_us = 1.0, .gmacs_per_s = 17.0, .gbytes_per_s = 10.0};
  (void)registry.add(row("generic", Numerics::e4m3_block, kPasses, checked<Numerics::e4m3_block, generic_e4m3_block>));
  (void)registry.add(
      row("generic", Numerics::int8_dynamic, kGeneric, checked<Numerics::int8_dynamic, generic_int8_dynamic>));

#if defined(__x86_64__)
  const auto add = [&](const char* arch, Numerics numerics, double gmacs_per_s, LinearLauncher run,
                       bool (*supported)()) {
    // Where memory is what counts, the newer instructions win a tie.
    const double overhead_us = std::string_view(arch) == "amx" ? 0.4 : 0.5;
    KernelInfo info = row(arch, numerics, {overhead_us, gmacs_per_s, 20.0}, run);
    info.supported = supported;
    // Beyond this depth an INT32 sum of products of 127 could wrap; the generic kernel's cannot.
    if (numerics == Numerics::int8_dynamic)
      info.accepts = [](std::int64_t, std::int64_t, std::int64_t k) {
        return k <= std::numeric_limits<std::int32_t>::max() / (127 * 127);
      };
    (void)registry.add(info);
  };
  const auto has_avx2 = [] { return cpu_features().avx2; };
  const auto has_bf16 = [] { return cpu_features().avx512_bf16; };
  const auto has_bf16_and_vbmi = [] { return cpu_features().avx512_bf16 && cpu_features().avx512_vbmi; };
  const auto has_vnni = [] { return cpu_features().avx512_vnni; };
  add("avx2", Numerics::int8_dynamic, 60.0, checked<Numerics::int8_dynamic, avx2_kernels::linear_int8_dynamic>,
      has_avx2);
  add("avx512", Numerics::bf16, 105.0, checked<Numerics::bf16, avx512_kernels::linear_bf16>, has_bf16);
  add("avx512", Numerics::e4m3_row, 95.0, checked<Numerics::e4m3_row, avx512_kernels::linear_e4m3_row>,
      has_bf16_and_vbmi);
  add("avx512", Numerics::e4m3_weight_only, 100.0,
      checked<Numerics::e4m3_weight_only, avx512_kernels::linear_e4m3_weight_only>, has_bf16_and_vbmi);
  add("avx512", Numerics::int8_dynamic, 195.0, checked<Numerics::int8_dynamic, avx512_kernels::linear_int8_dynamic>,
      has_vnni);
  const auto has_amx = [] { return cpu_features().amx; };
  add("amx", Numerics::bf16, 280.0, checked<Numerics::bf16, amx_kernels::linear_bf16>, has_amx);
  add("amx", Numerics::e4m3_row, 240.0, checked<Numerics::e4m3_row, amx_kernels::linear_e4m3_row>, has_amx);
  add("amx", Numerics::e4m3_weight_only, 260.0,
      checked<Numerics::e4m3_weight_only, amx_kernels::linear_e4m3_weight_only>, has_amx);
  add("amx", Numerics::int8_dynamic, 400.0, checked<Numerics::int8_dynamic, amx_kernels::linear_int8_dynamic>, has_amx);
#endif
}

}  // namespace octavo
