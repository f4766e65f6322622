// A linear layer with random operands, and what it should give: FP64 on the dequantized operands.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "octavo/float8.hpp"
#include "octavo/quantize.hpp"
#include "octavo/registry.hpp"

namespace octavo::testing {

// FP32 or BF16 numbers, [rows, cols] with `stride` elements between rows.
struct Matrix {
  DType dtype;
  std::int64_t rows, cols, stride;
  std::vector<float> f32;
  std::vector<std::uint16_t> bf16;

  Matrix(DType type, std::int64_t r, std::int64_t c, std::int64_t padding = 0)
      : dtype(type), rows(r), cols(c), stride(c + padding) {
    const auto size = static_cast<std::size_t>(rows * stride);
    if (dtype == DType::f32) {
      f32.assign(size, 0.0f);
    } else {
      bf16.assign(size, 0);
    }
  }

  float get(std::int64_t r, std::int64_t c) const {
    const auto at = static_cast<std::size_t>(r * stride + c);
    return dtype == DType::f32 ? f32[at] : decode_bf16(bf16[at]);
  }
  void set(std::int64_t r, std::int64_t c, float value) {
    const auto at = static_cast<std::size_t>(r * stride + c);
    if (dtype == DType::f32) {
      f32[at] = value;
    } else {
      bf16[at] = encode_bf16(value);
    }
  }
  MatrixView view() {
    void* data = dtype == DType::f32 ? static_cast<void*>(f32.data()) : static_cast<void*>(bf16.data());
    return {data, rows, cols, stride, dtype};
  }
};

enum class ResidualUse { none, before_norm, after };

struct LinearSpec {
  std::int64_t m = 1, n = 1, k = 1;
  DType x = DType::f32, y = DType::f32, residual_dtype = DType::f32;
  bool bias = true;
  NormKind norm = NormKind::none;
  bool norm_vectors = true;  // weight and bias where the norm has them
  std::int64_t norm_block = 256;
  Activation activation = Activation::none;
  ResidualUse residual = ResidualUse::none;
  std::int64_t padding = 0;  // between the rows of x, y and the residual
  float offset = 0.0f;       // added to every bias

  std::string describe() const {
    return "m=" + std::to_string(m) + " n=" + std::to_string(n) + " k=" + std::to_string(k) +
           " x=" + std::to_string(static_cast<int>(x)) + " y=" + std::to_string(static_cast<int>(y)) +
           " norm=" + std::to_string(static_cast<int>(norm)) + " act=" + std::to_string(static_cast<int>(activation)) +
           " residual=" + std::to_string(static_cast<int>(residual)) + " padding=" + std::to_string(padding);
  }
};

class LinearCase {
 public:
  LinearCase(const LinearSpec& spec, Numerics numerics);

  LinearArgs args();
  Status run(const KernelInfo& kernel);
  std::vector<double> reference() const;  // [m, n]

  // max |y - reference| / max |reference|; infinity where one is NaN or infinite and the other is not equal to it.
  double error() const;
  bool padding_untouched() const;

  LinearSpec spec;
  Numerics numerics;
  Matrix x, y, residual;
  std::vector<std::uint8_t> codes;  // [n, k] elements of the weight's format
  std::vector<float> scale, bias, norm_weight, norm_bias;
  std::optional<PackedWeight> weight;

 private:
  ScaleTile weight_tile() const;                        // what shares a scale
  std::vector<double> operand(std::int64_t row) const;  // the row of x as the class sees it, dequantized
  std::vector<double> weights() const;                  // [n, k] dequantized
  void encode_weight(const std::vector<float>& values, ScaleTile tile);
};

}  // namespace octavo::testing
