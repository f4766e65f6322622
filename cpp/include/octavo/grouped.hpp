// Many linear layers in one parallel region: work is shared over all of them, not layer by layer.
#pragma once

#include <cstddef>

#include "octavo/registry.hpp"

namespace octavo {

struct GroupedLinear {
  const KernelInfo* kernel = nullptr;  // a linear kernel of the class that args.weight is packed for
  LinearArgs args;
};

// Each result is bitwise that of kernel->run.linear(args): threads take whole rows. Nothing runs when any of the calls
// is invalid. Outputs must not overlap.
// Neighbours that a kernel can take as one batch are one.
Status run_grouped(const GroupedLinear* calls, std::size_t count);

// The longest batch that the first of `count` > 0 calls starts; of one layer where the next does not go with it, or the
// kernel takes none.
LinearBatch batch_of(const GroupedLinear* calls, std::size_t count);

}  // namespace octavo
