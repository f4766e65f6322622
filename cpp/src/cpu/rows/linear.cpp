#include "octavo/registry.hpp"

namespace octavo {

void register_linear_kernels(Registry&) {}

}  // namespace octavo
