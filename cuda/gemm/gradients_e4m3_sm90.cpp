// Gradients of a linear layer of class e4m3_row on Hopper: E5M2 gradients times E4M3. Eight-bit operands must be
// contiguous along the sum, so W and, for grad_weight, the gradient and x are transposed while they are rounded. Where
// both are wanted, one cast of the gradient serves them.
#include <climits>

#include "gemm/layers.hpp"
#include "gemm/sums_over_rows.hpp"
#include "kernels.hpp"

namespace octavo::cuda {
namespace {

Status zeros(const MatrixView& out, cudaStream_t stream) {
  const auto bytes = static_cast<std::size_t>(size_of(out.dtype));
  return checked(
      cudaMemset2DAsync(out.data, static_cast<std::size_t>(out.row_stride) * bytes, 0,
                        static_cast<std::size_t>(out.cols) * bytes, static_cast<std::size_t>(out.rows), stream),
      "linear gradient");
}

// Eight-bit rows of an operand, `ld` bytes apart with zeros behind what it has, and a scale for each.
struct Codes {
  StreamBuffer data, scale;
  std::int64_t ld = 0;
  explicit Codes(cudaStream_t stream) : data(stream), scale(stream) {}

  Status allocate(std::int64_t rows, std::int64_t cols) {
    ld = padded(cols, 16);
    if (Status s = data.allocate(static_cast<std::size_t>(rows * ld)); !s.ok()) return s;
    return scale.allocate(static_cast<std::size_t>(rows) * 4);
  }
};

// A cast to codes of x^T with a scale per column of x, into `columns`.
QuantizeBoth into_columns(const MatrixView& x, DType format, const Codes& columns, cudaStream_t stream) {
  QuantizeBoth cast;
  cast.x = x;
  cast.column_format = format;
  cast.column_codes = columns.data.as<void>();
  cast.column_ld = columns.ld;
  cast.column_scale = columns.scale.as<float>();
  cast.stream = stream;
  return cast;
}

Status round_columns(const MatrixView& x, DType format, Codes& columns, cudaStream_t stream) {
  if (Status s = columns.allocate(x.cols, x.rows); !s.ok()) return s;
  return quantize_both(into_columns(x, format, columns, stream));
}

// The gradient times W's scales, which lie along the sum, by rows.
Status round_rows(const GradInputArgs& args, Codes& rows, cudaStream_t stream) {
  if (Status s = rows.allocate(args.grad.rows, args.grad.cols); !s.ok()) return s;
  const QuantizeArgs quantize{.x = args.grad,
                              .format = DType::e5m2,
                              .scaling = Scaling::row,
                              .codes = rows.data.as<void>(),
                              .scale = rows.scale.as<float>(),
                              .stream = stream};
  return quantize_row_padded(quantize, rows.ld, args.weight->scale());
}

// What round_rows and round_columns give, with the gradient measured once and encoded once.
Status round_both(const GradInputArgs& args, Codes& rows, Codes& columns, cudaStream_t stream) {
  if (Status s = rows.allocate(args.grad.rows, args.grad.cols); !s.ok()) return s;
  if (Status s = columns.allocate(args.grad.cols, args.grad.rows); !s.ok()) return s;
  QuantizeBoth both = into_columns(args.grad, DType::e5m2, columns, stream);
  both.column_factor = args.weight->scale();
  both.row_format = DType::e5m2;
  both.row_codes = rows.data.as<void>();
  both.row_ld = rows.ld;
  both.row_scale = rows.scale.as<float>();
  return quantize_both(both);
}

Status grad_input(const GradInputArgs& args, const Codes& grad, cudaStream_t stream) {
  const PackedWeight& w = *args.weight;
  StreamBuffer weights(stream);
  if (Status s = weights.allocate(static_cast<std::size_t>(w.k() * grad.ld)); !s.ok()) return s;
  if (Status s = transpose_codes(w.codes(), w.n(), w.k(), weights.as<void>(), grad.ld, stream); !s.ok()) return s;
  Gemm g;
  g.m = static_cast<int>(args.grad.rows);
  g.n = static_cast<int>(w.k());
  g.k = static_cast<int>(grad.ld);
  g.x = grad.data.as<void>();
  g.w = weights.as<void>();
  g.ldx = g.ldw = grad.ld;
  g.x_scale = grad.scale.as<float>();
  g.d = args.grad_x.data;
  g.ldd = args.grad_x.row_stride;
  g.d_dtype = args.grad_x.dtype;
  return run_best(request_of(g, Product::e5m2), g, stream);
}

Status grad_weight(const GradWeightArgs& args, const Codes& grad, cudaStream_t stream) {
  Codes x(stream);
  if (Status s = round_columns(args.x, DType::e4m3, x, stream); !s.ok()) return s;
  Gemm g;
  g.m = static_cast<int>(args.grad.cols);
  g.n = static_cast<int>(args.x.cols);
  g.x = grad.data.as<void>();
  g.ldx = grad.ld;
  g.x_scale = grad.scale.as<float>();
  g.w = x.data.as<void>();
  g.ldw = x.ld;
  g.w_scale = x.scale.as<float>();
  return sum_over_rows(g, Product::e5m2, Major::k, args.x.rows, 1, 1, args.grad_weight, stream);
}

Status check(const GradInputArgs& args) {
  if (Status status = validate(args, Numerics::e4m3_row); !status.ok()) return status;
  if (args.grad.rows > INT_MAX || args.weight->n() > INT_MAX - 16 || args.weight->k() > INT_MAX)
    return Status::unsupported("linear_grad_input: the CUDA kernel takes up to 2^31 - 1 rows and columns");
  return expect_readable(args);
}

Status check(const GradWeightArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  if (args.x.rows > INT_MAX - 16 || args.grad.cols > INT_MAX || args.x.cols > INT_MAX)
    return Status::unsupported("linear_grad_weight: the CUDA kernel takes up to 2^31 - 1 rows and columns");
  return expect_readable(args);
}

}  // namespace

Status grad_input_e4m3_row_sm90(const GradInputArgs& args) {
  if (Status s = check(args); !s.ok()) return s;
  if (args.grad.rows == 0 || args.weight->k() == 0) return {};
  const DeviceGuard guard(args.grad_x.data);
  if (Status s = expect_capability("linear_grad_input", 9, 0); !s.ok()) return s;
  const cudaStream_t stream = static_cast<cudaStream_t>(args.stream);
  if (args.weight->n() == 0) return zeros(args.grad_x, stream);
  Codes grad(stream);
  if (Status s = round_rows(args, grad, stream); !s.ok()) return s;
  return grad_input(args, grad, stream);
}

Status grad_weight_e4m3_row_sm90(const GradWeightArgs& args) {
  if (Status s = check(args); !s.ok()) return s;
  if (args.grad.cols == 0 || args.x.cols == 0) return {};
  const DeviceGuard guard(args.grad_weight.data);
  if (Status s = expect_capability("linear_grad_weight", 9, 0); !s.ok()) return s;
  const cudaStream_t stream = static_cast<cudaStream_t>(args.stream);
  if (args.x.rows == 0) return zeros(args.grad_weight, stream);
  Codes grad(stream);
  if (Status s = round_columns(args.grad, DType::e5m2, grad, stream); !s.ok()) return s;
  return grad_weight(args, grad, stream);
}

Status gradients_e4m3_row_sm90(const GradInputArgs& input, const GradWeightArgs& weight) {
  if (Status s = check(input); !s.ok()) return s;
  if (Status s = check(weight); !s.ok()) return s;
  if (input.grad.rows == 0 || input.grad.cols == 0 || weight.x.cols == 0) {
    if (Status s = grad_input_e4m3_row_sm90(input); !s.ok()) return s;
    return grad_weight_e4m3_row_sm90(weight);
  }
  const DeviceGuard guard(input.grad_x.data);
  if (Status s = expect_capability("linear_gradients", 9, 0); !s.ok()) return s;
  const cudaStream_t stream = static_cast<cudaStream_t>(input.stream);
  Codes rows(stream), columns(stream);
  if (Status s = round_both(input, rows, columns, stream); !s.ok()) return s;
  if (Status s = grad_input(input, rows, stream); !s.ok()) return s;
  return grad_weight(weight, columns, stream);
}

}  // namespace octavo::cuda
