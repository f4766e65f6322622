#include "cpu/generic/linear_products.hpp"

#include "cpu/per_isa.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {

void multiply_block(const float* a, std::int64_t count, std::int64_t depth, const std::uint16_t* panel, float* c) {
  for (std::int64_t r = 0; r < count;) {
    const int height = micro_height(count - r);
    multiply(height, a + r * depth, panel, depth, c + r * kPanel, kPanel, false);
    r += height;
  }
}

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
