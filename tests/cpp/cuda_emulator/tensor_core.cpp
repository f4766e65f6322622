#include "tensor_core.hpp"

#include "emulator.hpp"
#include "octavo/float8.hpp"

namespace octavo::cuda_emulator {

// Every lane sees all registers of the warp, builds both matrices and sums its own elements of C, one column of A after
// the other; in which order and how precisely a device sums 16 products is its own affair.
void multiply_add(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  float rows[16][16], columns[16][8];
  const auto place = [](unsigned word, int half) { return decode_bf16(static_cast<std::uint16_t>(word >> 16 * half)); };
  for (int reg = 0; reg < 4; ++reg) {
    const auto values = exchange(~0u, kProduct, a[reg]);
    for (int lane = 0; lane < 32; ++lane)
      for (int half = 0; half < 2; ++half) {
        const Element e = element_of_a(lane, reg, half);
        rows[e.row][e.column] = place(static_cast<unsigned>(values[static_cast<std::size_t>(lane)]), half);
      }
  }
  for (int reg = 0; reg < 2; ++reg) {
    const auto values = exchange(~0u, kProduct, b[reg]);
    for (int lane = 0; lane < 32; ++lane)
      for (int half = 0; half < 2; ++half) {
        const Element e = element_of_b(lane, reg, half);
        columns[e.row][e.column] = place(static_cast<unsigned>(values[static_cast<std::size_t>(lane)]), half);
      }
  }
  for (int reg = 0; reg < 4; ++reg) {
    const Element e = element_of_c(static_cast<int>(lane()), reg);
    for (int k = 0; k < 16; ++k) c[reg] = std::fma(rows[e.row][k], columns[k][e.column], c[reg]);
  }
}

}  // namespace octavo::cuda_emulator
