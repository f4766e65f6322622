// The same on CPUs with VBMI: bytes are gathered by one permutation, BF16 goes by table. Compiled with
// -ffp-contract=off.
#include "cpu/avx512/quantize_rows.hpp"

namespace octavo::avx512_kernels {

Status quantize_int8_row_vbmi(const QuantizeArgs& args) {
  return quantize_rows_of<Int8>(args, "cpu.avx512_vbmi.quantize.int8_row");
}

}  // namespace octavo::avx512_kernels
