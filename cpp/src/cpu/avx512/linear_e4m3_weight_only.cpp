// x in BF16, W in E4M3 with a scale per row (W8A16), FP32 sums.
#include "cpu/avx512/linear_e4m3_class.hpp"

namespace octavo::avx512_kernels {
namespace {

struct WeightOnlyClass : E4m3Class {
  using E4m3Class::E4m3Class;

  RoundedRows round(const LinearArgs& args, std::int64_t first, std::int64_t count, void* buffer, float* scale) const {
    return bf16_rows(args, first, count, buffer, scale);
  }
};

}  // namespace

void linear_e4m3_weight_only(const LinearArgs& args) { run_linear<WeightOnlyClass>(args); }

}  // namespace octavo::avx512_kernels
