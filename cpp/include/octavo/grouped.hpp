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
Status run_grouped(const GroupedLinear* calls, std::size_t count);

}  // namespace octavo
