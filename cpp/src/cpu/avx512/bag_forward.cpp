// Pooled rows with AVX-512 F, BW, VL and DQ alone.
#include "cpu/avx512/bag_e4m3.hpp"
#include "cpu/bag_pooling.hpp"

namespace octavo::avx512_kernels {

Status bag_forward(const BagForwardArgs& args) { return pool_all<Formats<E4m3ViaF16>>(args); }

}  // namespace octavo::avx512_kernels
