#include "tensor_core.hpp"

#include "emulator.hpp"
#include "octavo/float8.hpp"

namespace octavo::cuda_emulator {

namespace {

// Every lane sees all registers of the warp: put(e, value) for each element of an operand.
template <int registers, class ElementOf, class Put>
void collect(const unsigned (&own)[registers], ElementOf element_of, Put put) {
  for (int reg = 0; reg < registers; ++reg) {
    const auto values = exchange(~0u, kProduct, own[reg]);
    for (int lane = 0; lane < 32; ++lane)
      for (int half = 0; half < 2; ++half)
        put(element_of(lane, reg, half),
            decode_bf16(static_cast<std::uint16_t>(values[static_cast<std::size_t>(lane)] >> 16 * half)));
  }
}

}  // namespace

// A lane sums its own elements of C, one column of A after the other; in which order and how precisely a device sums 16
// products is its own affair.
void multiply_add(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  float rows[16][16], columns[16][8];
  collect(a, element_of_a, [&](Element e, float v) { rows[e.row][e.column] = v; });
  collect(b, element_of_b, [&](Element e, float v) { columns[e.row][e.column] = v; });
  for (int reg = 0; reg < 4; ++reg) {
    const Element e = element_of_c(static_cast<int>(lane()), reg);
    for (int k = 0; k < 16; ++k) c[reg] = std::fma(rows[e.row][k], columns[k][e.column], c[reg]);
  }
}

}  // namespace octavo::cuda_emulator
