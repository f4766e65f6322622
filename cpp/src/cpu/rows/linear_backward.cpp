#include "cpu/per_isa.hpp"
#include "octavo/registry.hpp"

namespace octavo {

OCTAVO_DECLARE_GENERIC(void linear_epilogue_backward(const EpilogueBackwardArgs& args))
OCTAVO_DECLARE_GENERIC(void linear_grad_input_bf16(const GradInputArgs& args))
OCTAVO_DECLARE_GENERIC(void linear_grad_input_e4m3_row(const GradInputArgs& args))
OCTAVO_DECLARE_GENERIC(void linear_grad_input_int8_dynamic(const GradInputArgs& args))
OCTAVO_DECLARE_GENERIC(void linear_grad_weight_bf16(const GradWeightArgs& args))
OCTAVO_DECLARE_GENERIC(void linear_grad_weight_e4m3_row(const GradWeightArgs& args))

#if defined(__x86_64__)
namespace avx512_kernels {
void linear_grad_input_bf16(const GradInputArgs& args);
void linear_grad_input_e4m3_row(const GradInputArgs& args);
void linear_grad_input_int8_dynamic(const GradInputArgs& args);
void linear_grad_weight_bf16(const GradWeightArgs& args);
void linear_grad_weight_e4m3_row(const GradWeightArgs& args);
}  // namespace avx512_kernels
namespace amx_kernels {
void linear_grad_input_bf16(const GradInputArgs& args);
void linear_grad_input_e4m3_row(const GradInputArgs& args);
void linear_grad_input_int8_dynamic(const GradInputArgs& args);
void linear_grad_weight_bf16(const GradWeightArgs& args);
void linear_grad_weight_e4m3_row(const GradWeightArgs& args);
}  // namespace amx_kernels
#endif

namespace {

KernelInfo row(const std::string& arch, Op op, Numerics numerics, CostPrior cost) {
  KernelInfo info;
  info.name = "cpu." + arch + "." + to_string(op);
  if (op != Op::linear_epilogue_backward) info.name += std::string(".") + to_string(numerics);
  info.op = op;
  info.numerics = numerics;
  info.cost = cost;
  return info;
}

template <auto run>
Status epilogue(const EpilogueBackwardArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  run(args);
  return {};
}

template <Numerics numerics, auto run>
Status input(const GradInputArgs& args) {
  if (Status status = validate(args, numerics); !status.ok()) return status;
  run(args);
  return {};
}

template <auto run>
Status weight(const GradWeightArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  run(args);
  return {};
}

void epilogue_backward(const EpilogueBackwardArgs& args) { OCTAVO_CALL_GENERIC(linear_epilogue_backward, args); }
void input_bf16(const GradInputArgs& args) { OCTAVO_CALL_GENERIC(linear_grad_input_bf16, args); }
void input_e4m3_row(const GradInputArgs& args) { OCTAVO_CALL_GENERIC(linear_grad_input_e4m3_row, args); }
void input_int8_dynamic(const GradInputArgs& args) { OCTAVO_CALL_GENERIC(linear_grad_input_int8_dynamic, args); }
void weight_bf16(const GradWeightArgs& args) { OCTAVO_CALL_GENERIC(linear_grad_weight_bf16, args); }
void weight_e4m3_row(const GradWeightArgs& args) { OCTAVO_CALL_GENERIC(linear_grad_weight_e4m3_row, args); }

}  // namespace

void register_linear_backward_kernels(Registry& registry) {
  const auto add_input = [&](const char* arch, Numerics numerics, CostPrior cost, GradInputLauncher run,
                             bool (*supported)() = nullptr) {
    KernelInfo info = row(arch, Op::linear_grad_input, numerics, cost);
    info.run.grad_input = run;
    if (supported != nullptr) info.supported = supported;
    (void)registry.add(std::move(info));
  };
  const auto add_weight = [&](const char* arch, Numerics numerics, CostPrior cost, GradWeightLauncher run,
                              bool (*supported)() = nullptr) {
    KernelInfo info = row(arch, Op::linear_grad_weight, numerics, cost);
    info.run.grad_weight = run;
    if (supported != nullptr) info.supported = supported;
    (void)registry.add(std::move(info));
  };

  KernelInfo info = row("generic", Op::linear_epilogue_backward, Numerics::fp32, {1.0, 10.0, 10.0});
  info.run.epilogue_backward = epilogue<epilogue_backward>;
  (void)registry.add(std::move(info));
  constexpr CostPrior kGeneric{.overhead_us = 1.0, .gmacs_per_s = 15.0, .gbytes_per_s = 5.0};
  using enum Numerics;
  add_input("generic", bf16, kGeneric, input<bf16, input_bf16>);
  add_input("generic", e4m3_row, kGeneric, input<e4m3_row, input_e4m3_row>);
  add_input("generic", int8_dynamic, kGeneric, input<int8_dynamic, input_int8_dynamic>);
  add_weight("generic", bf16, kGeneric, weight<weight_bf16>);
  add_weight("generic", e4m3_row, kGeneric, weight<weight_e4m3_row>);

#if defined(__x86_64__)
  const auto has_bf16 = [] { return cpu_features().avx512_bf16; };
  constexpr CostPrior kAvx512{.overhead_us = 0.5, .gmacs_per_s = 105.0, .gbytes_per_s = 20.0};
  add_input("avx512", bf16, kAvx512, input<bf16, avx512_kernels::linear_grad_input_bf16>, has_bf16);
  add_input("avx512", e4m3_row, kAvx512, input<e4m3_row, avx512_kernels::linear_grad_input_e4m3_row>, has_bf16);
  add_input("avx512", int8_dynamic, {.overhead_us = 0.5, .gmacs_per_s = 210.0, .gbytes_per_s = 20.0},
            input<int8_dynamic, avx512_kernels::linear_grad_input_int8_dynamic>,
            [] { return cpu_features().avx512_vnni; });
  add_weight("avx512", bf16, kAvx512, weight<avx512_kernels::linear_grad_weight_bf16>, has_bf16);
  add_weight("avx512", e4m3_row, kAvx512, weight<avx512_kernels::linear_grad_weight_e4m3_row>, has_bf16);
  const auto has_amx = [] { return cpu_features().amx; };
  constexpr CostPrior kAmx{.overhead_us = 0.4, .gmacs_per_s = 280.0, .gbytes_per_s = 20.0};
  add_input("amx", bf16, kAmx, input<bf16, amx_kernels::linear_grad_input_bf16>, has_amx);
  add_input("amx", e4m3_row, kAmx, input<e4m3_row, amx_kernels::linear_grad_input_e4m3_row>, has_amx);
  add_weight("amx", bf16, kAmx, weight<amx_kernels::linear_grad_weight_bf16>, has_amx);
  add_weight("amx", e4m3_row, kAmx, weight<amx_kernels::linear_grad_weight_e4m3_row>, has_amx);
  add_input("amx", int8_dynamic, kAmx, input<int8_dynamic, amx_kernels::linear_grad_input_int8_dynamic>, has_amx);
#endif
}

}  // namespace octavo
