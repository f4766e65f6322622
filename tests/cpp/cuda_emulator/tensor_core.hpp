// Where the elements of mma.m16n8k16's operands lie in a warp's registers, as the PTX manual draws it (tensor_core_test
// compares it with CUTLASS's layouts). `half`: the upper or lower 16 bits of a register.
#pragma once

namespace octavo::cuda_emulator {

struct Element {
  int row, column;
};

inline Element element_of_a(int lane, int reg, int half) {  // A [16, 16]
  return {lane / 4 + reg % 2 * 8, lane % 4 * 2 + half + reg / 2 * 8};
}
inline Element element_of_b(int lane, int reg, int half) {  // B [16, 8]
  return {lane % 4 * 2 + half + reg * 8, lane / 4};
}
inline Element element_of_c(int lane, int reg) {  // C [16, 8]
  return {lane / 4 + reg / 2 * 8, lane % 4 * 2 + reg % 2};
}

}  // namespace octavo::cuda_emulator
