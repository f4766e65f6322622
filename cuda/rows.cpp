// The table's rows of CUDA kernels.
#include "device/device.hpp"
#include "kernels.hpp"
#include "octavo/registry.hpp"

namespace octavo {
namespace {

// Compiled for sm_80 and sm_90 and as PTX: any device since Ampere. Priors were never measured: bytes at about the
// bandwidth of an A100.
KernelInfo simt_row(const char* name, Op op, double overhead_us) {
  KernelInfo row;
  row.name = name;
  row.op = op;
  row.device = Device::cuda;
  row.cost = {.overhead_us = overhead_us, .gmacs_per_s = 1000.0, .gbytes_per_s = 1500.0};
  row.supported = [] { return cuda::device_info().usable && cuda::device_info().major >= 8; };
  return row;
}

}  // namespace

void register_cuda_kernels(Registry& registry) {
  constexpr const char* kRowFormats = "float32|float16|bfloat16|e4m3|int8|int4 -> ";
  const auto add_quantizer = [&](const char* name, double overhead_us, const char* codes, QuantizeLauncher run) {
    KernelInfo row = simt_row(name, Op::quantize, overhead_us);
    row.formats = std::string("float32|bfloat16|float16 -> ") + codes;
    row.run.quantize = run;
    (void)registry.add(row);
  };
  add_quantizer("cuda.sm80.quantize_row", 4.0, "e4m3|e5m2|int8, row", cuda::quantize_row);
  add_quantizer("cuda.sm80.quantize_block", 4.0, "e4m3|e5m2|int8, block_1x128|block_128x128", cuda::quantize_block);
  add_quantizer("cuda.sm80.quantize_mx", 4.0, "e4m3|e5m2, mx", cuda::quantize_block);
  add_quantizer("cuda.sm80.quantize_tensor", 8.0, "e4m3|e5m2|int8, tensor", cuda::quantize_tensor);

  KernelInfo epilogue_backward = simt_row("cuda.sm80.linear_epilogue_backward", Op::linear_epilogue_backward, 8.0);
  epilogue_backward.run.epilogue_backward = cuda::linear_epilogue_backward;
  (void)registry.add(epilogue_backward);

  KernelInfo forward = simt_row("cuda.sm80.bag_forward", Op::bag_forward, 5.0);
  forward.formats = std::string(kRowFormats) + "float32|bfloat16";
  forward.run.bag_forward = cuda::bag_forward;
  (void)registry.add(forward);

  KernelInfo lookup = simt_row("cuda.sm80.row_lookup", Op::row_lookup, 5.0);
  lookup.formats = forward.formats;
  lookup.run.row_lookup = cuda::row_lookup;
  (void)registry.add(lookup);

  KernelInfo backward = simt_row("cuda.sm80.bag_backward", Op::bag_backward, 30.0);
  backward.formats = std::string(kRowFormats) + "float32";
  backward.run.bag_backward = cuda::bag_backward;
  (void)registry.add(backward);

  KernelInfo pairs = simt_row("cuda.sm80.pairwise_dots.fp32", Op::pairwise_dots, 5.0);
  pairs.numerics = Numerics::fp32;
  pairs.formats = "fp32";
  pairs.run.pairwise_dots = cuda::pairwise_dots_fp32;
  (void)registry.add(pairs);
  pairs.name = "cuda.sm80.pairwise_dots.bf16";
  pairs.numerics = Numerics::bf16;
  pairs.formats = "bf16";
  pairs.run.pairwise_dots = cuda::pairwise_dots_bf16;
  (void)registry.add(pairs);

  KernelInfo find = simt_row("cuda.sm80.find_rows", Op::find_rows, 3.0);
  find.formats = "int64 ids -> int64 rows";
  find.run.find_rows = cuda::find_rows;
  (void)registry.add(find);
}

}  // namespace octavo
