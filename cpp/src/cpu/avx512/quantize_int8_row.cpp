// FP32, BF16 or FP16 rows -> INT8 codes with a scale per row. Compiled with -ffp-contract=off.
#include "cpu/avx512/quantize_rows.hpp"

namespace octavo::avx512_kernels {

Status quantize_int8_row(const QuantizeArgs& args) {
  return quantize_rows_of<Int8>(args, "cpu.avx512.quantize.int8_row");
}

}  // namespace octavo::avx512_kernels
