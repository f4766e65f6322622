// Checks shared by every embedding-bag kernel.
#include "octavo/embedding.hpp"

#include <string>

namespace octavo {

Status validate(const BagIndices& indices) {
  const std::int64_t bags = indices.num_tables * indices.batch;
  const std::int64_t* offsets = indices.offsets;
  if (offsets[0] != 0) return Status::invalid("offsets: must start at 0, offsets[0] is " + std::to_string(offsets[0]));
  for (std::int64_t b = 0; b < bags; ++b)
    if (offsets[b + 1] < offsets[b])
      return Status::invalid("offsets: must never decrease, but offsets[" + std::to_string(b + 1) +
                             "] = " + std::to_string(offsets[b + 1]) + " follows " + std::to_string(offsets[b]));
  if (offsets[bags] != indices.num_values)
    return Status::invalid("offsets: must end at the number of values (" + std::to_string(indices.num_values) +
                           "), but the last offset is " + std::to_string(offsets[bags]));
  return {};
}

}  // namespace octavo
