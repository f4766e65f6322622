// Division by what a launch decided: a multiplication instead of some twenty instructions.
#pragma once

namespace octavo::cuda {

class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int d)
      : d_(d), multiplier_(((1u << 31) + static_cast<unsigned>(d) - 1) / static_cast<unsigned>(d)) {}

  struct Parts {
    int quotient, remainder;
  };
  // Exact for 0 <= n and n d < 2^31.
  __device__ Parts operator()(int n) const {
    const auto q = static_cast<int>(static_cast<unsigned long long>(n) * multiplier_ >> 31);
    return {q, n - q * d_};
  }

 private:
  int d_ = 1;
  unsigned multiplier_ = 1u << 31;
};

}  // namespace octavo::cuda
