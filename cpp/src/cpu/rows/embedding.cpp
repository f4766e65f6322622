#include "octavo/registry.hpp"

namespace octavo {

void register_embedding_kernels(Registry&) {}

}  // namespace octavo
