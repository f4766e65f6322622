// Rows without pooling, with AVX-512 VBMI.
#include "cpu/avx512/bag_e4m3_vbmi.hpp"
#include "cpu/row_lookup.hpp"

namespace octavo::avx512_kernels {

Status row_lookup_vbmi(const RowLookupArgs& args) { return look_up_all<Formats<E4m3ByTable>>(args); }

}  // namespace octavo::avx512_kernels
