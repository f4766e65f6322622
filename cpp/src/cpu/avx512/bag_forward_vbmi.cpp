// Pooled rows with AVX-512 VBMI.
#include "cpu/avx512/bag_e4m3_vbmi.hpp"
#include "cpu/bag_pooling.hpp"

namespace octavo::avx512_kernels {

Status bag_forward_vbmi(const BagForwardArgs& args) { return pool_all<Formats<E4m3ByTable>>(args); }

}  // namespace octavo::avx512_kernels
