// Rows without pooling, with AVX-512 F, BW, VL and DQ alone.
#include "cpu/row_lookup.hpp"

#include "cpu/avx512/bag_e4m3.hpp"

namespace octavo::avx512_kernels {

Status row_lookup(const RowLookupArgs& args) { return look_up_all<Formats<E4m3ViaF16>>(args); }

}  // namespace octavo::avx512_kernels
