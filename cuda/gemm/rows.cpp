// The table's rows of linear layers and their gradients on Hopper.
#include <climits>

#include "gemm/layer_plan.hpp"
#include "gemm/layers.hpp"
#include "octavo/dispatch.hpp"
#include "octavo/registry.hpp"

namespace octavo {
namespace {

bool has_hopper() { return cuda::device_info().usable && cuda::device_info().major == 9; }

bool takes_sizes(std::int64_t m, std::int64_t n, std::int64_t k) {
  constexpr std::int64_t kLargest = INT_MAX - 128;  // padded sizes stay ints
  return m <= kLargest && n <= kLargest && k <= kLargest;
}

bool has_word(const std::string& epilogue, const char* word) {
  return ("+" + epilogue + "+").find("+" + std::string(word) + "+") != std::string::npos;
}

NormKind norm_in(const std::string& epilogue) {
  if (has_word(epilogue, "layer")) return NormKind::layer;
  if (has_word(epilogue, "block")) return NormKind::block;
  return has_word(epilogue, "rms") || has_word(epilogue, "swish_rms") ? NormKind::rms : NormKind::none;
}

// The layer that dispatch asks about, its residual in y's type.
std::function<double(const Problem&)> estimate_of(cuda::Product product) {
  return [product](const Problem& p) {
    cuda::LayerRequest request;
    request.product = product;
    request.m = p.m;
    request.n = p.n;
    request.k = p.k;
    request.x = p.x_dtype;
    request.y = p.out_dtype;
    request.norm = norm_in(p.epilogue);
    if (has_word(p.epilogue, "residual")) {
      request.residual = p.out_dtype == DType::bf16 ? cuda::Residual::bf16 : cuda::Residual::f32;
      request.residual_first = !p.epilogue.ends_with("residual");
    }
    if (const int found = cuda::device_info().multiprocessors; found > 0) request.sm_count = found;
    return cuda::plan_layer(request).us;
  };
}

// Rates are NVIDIA's for the H100 at half, and never measured.
KernelInfo row(Op op, Numerics numerics, double overhead_us, double gmacs_per_s) {
  KernelInfo info;
  info.name = std::string("cuda.sm90.") + to_string(op) + "." + to_string(numerics);
  info.op = op;
  info.device = Device::cuda;
  info.numerics = numerics;
  info.cost = {.overhead_us = overhead_us, .gmacs_per_s = gmacs_per_s, .gbytes_per_s = 1500.0};
  info.supported = has_hopper;
  info.accepts = takes_sizes;
  return info;
}

// Hopper aligns the products of an FP8 instruction to the largest and drops what lies about 14 bits below. Moved to
// FP32 every 128 of K, sums keep that much; left there for all of K, errors add up. Bounds are expectations until a GPU
// has run the checks; a dropped element of K shows at 2^-6 on the shapes that are checked.
constexpr double kPromotedTolerance = 1.0 / 1024, kFastTolerance = 1.0 / 128;

}  // namespace

void register_cuda_gemm_kernels(Registry& registry) {
  using cuda::Product;
  const auto add = [&](Numerics numerics, Product product, double overhead_us, double gmacs_per_s, double tolerance,
                       LinearLauncher run, LinearBatchLauncher batch = nullptr) {
    KernelInfo info = row(Op::linear, numerics, overhead_us, gmacs_per_s);
    info.tolerance = tolerance;
    info.takes_codes = cuda::bytes_of(product) == 1;
    info.estimate_us = estimate_of(product);
    info.norm_input = DType::bf16;
    info.run.linear = run;
    info.run.linear_batch = batch;
    (void)registry.add(info);
  };
  add(Numerics::bf16, Product::bf16, 8.0, 250000.0, KernelInfo{}.tolerance, cuda::linear_bf16_sm90,
      cuda::linear_batch_bf16_sm90);
  add(Numerics::e4m3_row, Product::e4m3, 12.0, 400000.0, kPromotedTolerance, cuda::linear_e4m3_row_sm90,
      cuda::linear_batch_e4m3_row_sm90);
  add(Numerics::e4m3_row_fast, Product::e4m3_fast, 12.0, 500000.0, kFastTolerance, cuda::linear_e4m3_row_fast_sm90,
      cuda::linear_batch_e4m3_row_fast_sm90);
  add(Numerics::e4m3_block, Product::e4m3_block, 12.0, 350000.0, kPromotedTolerance, cuda::linear_e4m3_block_sm90);

  KernelInfo grad_input = row(Op::linear_grad_input, Numerics::bf16, 8.0, 200000.0);
  grad_input.run.grad_input = cuda::grad_input_bf16_sm90;
  (void)registry.add(grad_input);

  KernelInfo grad_weight = row(Op::linear_grad_weight, Numerics::bf16, 12.0, 200000.0);
  grad_weight.run.grad_weight = cuda::grad_weight_bf16_sm90;
  (void)registry.add(grad_weight);

  KernelInfo grad_input_e4m3 = row(Op::linear_grad_input, Numerics::e4m3_row, 16.0, 300000.0);
  grad_input_e4m3.tolerance = kPromotedTolerance;
  grad_input_e4m3.run.grad_input = cuda::grad_input_e4m3_row_sm90;
  grad_input_e4m3.run.gradients = cuda::gradients_e4m3_row_sm90;
  (void)registry.add(grad_input_e4m3);

  KernelInfo grad_weight_e4m3 = row(Op::linear_grad_weight, Numerics::e4m3_row, 24.0, 300000.0);
  grad_weight_e4m3.tolerance = kPromotedTolerance;
  grad_weight_e4m3.run.grad_weight = cuda::grad_weight_e4m3_row_sm90;
  grad_weight_e4m3.run.gradients = cuda::gradients_e4m3_row_sm90;
  (void)registry.add(grad_weight_e4m3);
}

}  // namespace octavo
