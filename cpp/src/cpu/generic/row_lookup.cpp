// Rows without pooling on any CPU.
#include "cpu/row_lookup.hpp"
#include "cpu/generic/bag_formats.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {

Status row_lookup(const RowLookupArgs& args) { return look_up_all<Formats>(args); }

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
