// FP32, BF16 or FP16 rows -> E5M2 codes with a scale per row. Compiled with -ffp-contract=off.
#include "cpu/avx512/quantize_rows.hpp"

namespace octavo::avx512_kernels {

Status quantize_e5m2_row(const QuantizeArgs& args) {
  return quantize_rows_of<E5M2>(args, "cpu.avx512.quantize.e5m2_row");
}

}  // namespace octavo::avx512_kernels
