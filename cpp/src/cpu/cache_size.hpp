#pragma once

#include <cstdint>

namespace octavo {

// Bytes of the last cache level; 32 MiB where the system does not say.
std::int64_t last_cache_bytes();

}  // namespace octavo
