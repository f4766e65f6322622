// FP32, BF16 or FP16 rows -> E4M3 codes with a scale per row. Compiled with -ffp-contract=off.
#include "cpu/avx512/quantize_rows.hpp"

namespace octavo::avx512_kernels {

Status quantize_e4m3_row(const QuantizeArgs& args) {
  return quantize_rows_of<E4M3>(args, "cpu.avx512.quantize.e4m3_row");
}

}  // namespace octavo::avx512_kernels
