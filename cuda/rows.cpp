// The table's rows of CUDA kernels.
#include "device/device.hpp"
#include "kernels.hpp"
#include "octavo/registry.hpp"

namespace octavo {

void register_cuda_kernels(Registry& registry) {
  KernelInfo quantize;
  quantize.name = "cuda.sm80.quantize.e4m3_row";
  quantize.op = Op::quantize;
  quantize.device = Device::cuda;
  quantize.formats = "float32|bfloat16 -> e4m3, row";
  quantize.cost = {.overhead_us = 4.0, .gmacs_per_s = 1000.0, .gbytes_per_s = 1500.0};
  quantize.supported = [] { return cuda::device_info().usable && cuda::device_info().major >= 8; };
  quantize.run.quantize = cuda::quantize_e4m3_row;
  (void)registry.add(quantize);
}

}  // namespace octavo
