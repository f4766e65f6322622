// Pooled rows of many tables on any CPU.
#include "cpu/bag_pooling.hpp"
#include "cpu/generic/bag_formats.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {

Status bag_forward(const BagForwardArgs& args) { return pool_all<Formats>(args); }

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
