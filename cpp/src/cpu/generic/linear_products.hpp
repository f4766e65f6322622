// Products of packed rows and panels, apart from what rounds the rows: these may be contracted, that must not.
#pragma once

#include "cpu/generic/linear_panels.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {

// c [count, kPanel] = a, packed in the tile's heights ([depth][height] each), times one panel [depth, kPanel].
void multiply_block(const float* a, std::int64_t count, std::int64_t depth, const std::uint16_t* panel, float* c);

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
