#include "cpu/cache_size.hpp"

#include <unistd.h>

namespace octavo {

std::int64_t last_cache_bytes() {
  static const std::int64_t bytes = [] {
    long found = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE
    found = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return found > 0 ? static_cast<std::int64_t>(found) : std::int64_t{32} << 20;
  }();
  return bytes;
}

}  // namespace octavo
