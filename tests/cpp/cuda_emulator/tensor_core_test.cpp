// The emulator's idea of mma.m16n8k16's registers against CUTLASS's.
#include "tensor_core.hpp"

#include <gtest/gtest.h>

#include "cute/atom/mma_traits_sm80.hpp"

namespace octavo::testing {
namespace {

using namespace cute;
using Traits = MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN>;

// CUTLASS numbers the elements of A [16, 16], B^T [8, 16] and C [16, 8] down their columns.
TEST(TensorCore, RegistersLieWhereCutlassSays) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int value = 0; value < 8; ++value) {
      const auto e = cuda_emulator::element_of_a(lane, value / 2, value % 2);
      EXPECT_EQ(e.row + 16 * e.column, Traits::ALayout{}(lane, value)) << "A, lane " << lane << ", value " << value;
    }
    for (int value = 0; value < 4; ++value) {
      const auto b = cuda_emulator::element_of_b(lane, value / 2, value % 2);
      EXPECT_EQ(b.column + 8 * b.row, Traits::BLayout{}(lane, value)) << "B, lane " << lane << ", value " << value;
      const auto c = cuda_emulator::element_of_c(lane, value);
      EXPECT_EQ(c.row + 16 * c.column, Traits::CLayout{}(lane, value)) << "C, lane " << lane << ", value " << value;
    }
  }
}

}  // namespace
}  // namespace octavo::testing
