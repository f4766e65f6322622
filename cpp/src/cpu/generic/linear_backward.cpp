// The products of a linear layer's gradients on FP32 units: operands rounded as the class says are exact in FP32, and
// the one that is packed in panels is exact in BF16. Compiled with -ffp-contract=off, but for the products.
#include "octavo/linear_backward.hpp"

#include "cpu/generic/linear_products.hpp"
#include "cpu/per_isa.hpp"
#include "octavo/float8.hpp"
#include "octavo/memory.hpp"
#include "octavo/quantize.hpp"
#include "octavo/threading.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kBlockRows = 4 * kMicroRows;
constexpr std::int64_t kBlockDepth = 256;

float value_at(const MatrixView& v, std::int64_t row, std::int64_t column) {
  const std::int64_t at = row * v.row_stride + column;
  return v.dtype == DType::bf16 ? decode_bf16(static_cast<const std::uint16_t*>(v.data)[at])
                                : static_cast<const float*>(v.data)[at];
}

void put(const MatrixView& v, std::int64_t row, std::int64_t column, float value) {
  const std::int64_t at = row * v.row_stride + column;
  if (v.dtype == DType::bf16) {
    static_cast<std::uint16_t*>(v.data)[at] = encode_bf16(value);
  } else {
    static_cast<float*>(v.data)[at] = value;
  }
}

float* floats(int slot, std::int64_t count) {
  return static_cast<float*>(scratch(slot, static_cast<std::size_t>(count + 16) * sizeof(float)));
}

float round_to(float v, DType format) {
  switch (format) {
    case DType::e5m2: return decode_e5m2(encode_e5m2(v));
    case DType::e4m3: return decode_e4m3(encode_e4m3(v));
    case DType::i8: return v != v ? 0.0f : __builtin_rintf(v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v);
    default: return decode_bf16(encode_bf16(v));
  }
}

// Scale of `count` values f(i) in `format`; {1, 1} in BF16. A NaN makes the scale of INT8 NaN.
template <class F>
ScalePair scale_of(std::int64_t count, DType format, F f) {
  if (format == DType::bf16) return {1.0f, 1.0f};
  float largest = 0.0f;
  bool nan = false;
  for (std::int64_t i = 0; i < count; ++i) {
    const float magnitude = __builtin_fabsf(f(i));
    nan |= magnitude != magnitude;
    if (magnitude > largest && magnitude < __builtin_inff()) largest = magnitude;
  }
  ScalePair pair = scale_for(largest, format, false);
  if (nan && format == DType::i8) pair.scale = __builtin_nanf("");
  return pair;
}

// W [N, K] as panels [panel][N][kPanel] BF16: its values, or its codes where the class folds the scales into grad.
template <bool codes>
void pack_columns(const PackedWeight& w, void* out) {
  const std::int64_t n = w.n(), k = w.k();
  parallel_region(n * k < kSerialMacs ? 1 : threads(), [&](int thread, int used) {
    const Range own = partition(panels_of(k), thread, used);
    for (std::int64_t p = own.begin; p < own.end; ++p)
      for (std::int64_t i = 0; i < n; ++i) {
        std::uint16_t* to = static_cast<std::uint16_t*>(out) + (p * n + i) * kPanel;
        for (std::int64_t j = p * kPanel; j < (p + 1) * kPanel; ++j) {
          float v = 0.0f;
          if (j < k) {
            switch (w.format()) {
              case DType::bf16: v = decode_bf16(static_cast<const std::uint16_t*>(w.codes())[i * k + j]); break;
              case DType::e4m3: v = decode_e4m3(static_cast<const std::uint8_t*>(w.codes())[i * k + j]); break;
              default: v = static_cast<float>(static_cast<const std::int8_t*>(w.codes())[i * k + j]);
            }
            if (!codes) v *= w.scale_at(i, j);
          }
          *to++ = encode_bf16(v);
        }
      }
  });
}

template <Numerics numerics>
void grad_input(const GradInputArgs& args) {
  constexpr DType format = numerics == Numerics::e4m3_row       ? DType::e5m2
                           : numerics == Numerics::int8_dynamic ? DType::i8
                                                                : DType::bf16;
  constexpr bool folded = numerics != Numerics::bf16;
  const std::int64_t m = args.grad.rows, n = args.grad.cols, k = args.grad_x.cols;
  if (m == 0 || k == 0) return;
  static const char tag = 0;
  const auto* panels = static_cast<const std::uint16_t*>(args.weight->layout(
      &tag, static_cast<std::size_t>(panels_of(k) * kPanel * n) * sizeof(std::uint16_t), pack_columns<folded>));
  const float* column = folded ? args.weight->scale() : nullptr;

  parallel_region(m * n * k < kSerialMacs ? 1 : threads(), [&](int thread, int used) {
    const Range rows = partition(m, thread, used);
    float* a = floats(0, kBlockRows * n);
    float* c = floats(1, kBlockRows * kPanel);
    float* scale = floats(2, kBlockRows);
    for (std::int64_t first = rows.begin; first < rows.end; first += kBlockRows) {
      const std::int64_t count = rows.end - first < kBlockRows ? rows.end - first : kBlockRows;
      for (std::int64_t r = 0; r < count;) {  // as the tile takes them: [depth][height]
        const int height = micro_height(count - r);
        for (int h = 0; h < height; ++h) {
          const auto of = [&](std::int64_t i) {
            const float v = value_at(args.grad, first + r + h, i);
            return column == nullptr ? v : v * column[i];
          };
          const ScalePair pair = scale_of(n, format, of);
          scale[r + h] = pair.scale;
          for (std::int64_t i = 0; i < n; ++i) a[r * n + i * height + h] = round_to(of(i) * pair.multiplier, format);
        }
        r += height;
      }
      for (std::int64_t p = 0; p < panels_of(k); ++p) {
        multiply_block(a, count, n, panels + p * n * kPanel, c);
        for (std::int64_t r = 0; r < count; ++r)
          for (std::int64_t j = p * kPanel; j < k && j < (p + 1) * kPanel; ++j)
            put(args.grad_x, first + r, j, c[r * kPanel + j - p * kPanel] * scale[r]);
      }
    }
  });
}

// Scale and multiplier of every column of v.
void column_scales(const MatrixView& v, DType format, float* scale, float* multiplier) {
  parallel_region(v.rows * v.cols < kSerialMacs ? 1 : threads(), [&](int thread, int used) {
    const Range own = partition(v.cols, thread, used, 16);
    for (std::int64_t j = own.begin; j < own.end; ++j) {
      const ScalePair pair = scale_of(v.rows, format, [&](std::int64_t i) { return value_at(v, i, j); });
      scale[j] = pair.scale;
      multiplier[j] = pair.multiplier;
    }
  });
}

template <Numerics numerics>
void grad_weight(const GradWeightArgs& args) {
  constexpr bool scaled = numerics == Numerics::e4m3_row;
  constexpr DType grad_format = scaled ? DType::e5m2 : DType::bf16, x_format = scaled ? DType::e4m3 : DType::bf16;
  const std::int64_t m = args.grad.rows, n = args.grad.cols, k = args.x.cols;
  if (n == 0 || k == 0) return;
  float *row_scale = floats(4, 2 * n), *column_scale = floats(5, 2 * k);
  column_scales(args.grad, grad_format, row_scale, row_scale + n);
  column_scales(args.x, x_format, column_scale, column_scale + k);
  float* const out = static_cast<float*>(args.grad_weight.data);
  const std::int64_t stride = args.grad_weight.row_stride;

  parallel_region(m * n * k < kSerialMacs ? 1 : threads(), [&](int thread, int used) {
    const Range rows = partition(n, thread, used);
    float* a = floats(0, kBlockRows * kBlockDepth);
    float* c = floats(1, kBlockRows * kPanel);
    auto* panel = static_cast<std::uint16_t*>(scratch(2, kBlockDepth * kPanel * sizeof(std::uint16_t)));
    for (std::int64_t begin = 0; begin == 0 || begin < m; begin += kBlockDepth) {
      const std::int64_t depth = m - begin < kBlockDepth ? m - begin : kBlockDepth;
      for (std::int64_t p = 0; p < panels_of(k); ++p) {
        for (std::int64_t i = 0; i < depth; ++i)
          for (std::int64_t j = p * kPanel; j < (p + 1) * kPanel; ++j)
            panel[i * kPanel + j - p * kPanel] =
                j < k ? encode_bf16(round_to(value_at(args.x, begin + i, j) * column_scale[k + j], x_format))
                      : std::uint16_t{0};
        for (std::int64_t first = rows.begin; first < rows.end; first += kBlockRows) {
          const std::int64_t count = rows.end - first < kBlockRows ? rows.end - first : kBlockRows;
          for (std::int64_t r = 0; r < count;) {
            const int height = micro_height(count - r);
            for (std::int64_t i = 0; i < depth; ++i)
              for (int h = 0; h < height; ++h) {
                const std::int64_t j = first + r + h;
                a[r * depth + i * height + h] =
                    round_to(value_at(args.grad, begin + i, j) * row_scale[n + j], grad_format);
              }
            r += height;
          }
          multiply_block(a, count, depth, panel, c);
          for (std::int64_t r = 0; r < count; ++r)
            for (std::int64_t j = p * kPanel; j < k && j < (p + 1) * kPanel; ++j) {
              float* to = out + (first + r) * stride + j;
              const float sum = (begin == 0 ? 0.0f : *to) + c[r * kPanel + j - p * kPanel];
              *to = begin + depth >= m ? sum * row_scale[first + r] * column_scale[j] : sum;
            }
        }
      }
    }
  });
}

}  // namespace

void linear_grad_input_bf16(const GradInputArgs& args) { grad_input<Numerics::bf16>(args); }
void linear_grad_input_e4m3_row(const GradInputArgs& args) { grad_input<Numerics::e4m3_row>(args); }
void linear_grad_input_int8_dynamic(const GradInputArgs& args) { grad_input<Numerics::int8_dynamic>(args); }
void linear_grad_weight_bf16(const GradWeightArgs& args) { grad_weight<Numerics::bf16>(args); }
void linear_grad_weight_e4m3_row(const GradWeightArgs& args) { grad_weight<Numerics::e4m3_row>(args); }

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
