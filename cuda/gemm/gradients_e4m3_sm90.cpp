// Gradients of a linear layer of class e4m3_row on Hopper: E5M2 gradients times E4M3. Eight-bit operands must be
// contiguous along the sum, so W and, for grad_weight, the gradient and x are transposed while they are rounded.
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

// [cols, ld] codes of x^T with a scale per column of x, zeros behind its rows.
struct Columns {
  StreamBuffer codes, scale;
  std::int64_t ld = 0;
  explicit Columns(cudaStream_t stream) : codes(stream), scale(stream) {}

  Status make(const MatrixView& x, DType format, cudaStream_t stream) {
    ld = padded(x.rows, 16);
    if (Status s = codes.allocate(static_cast<std::size_t>(x.cols * ld)); !s.ok()) return s;
    if (Status s = scale.allocate(static_cast<std::size_t>(x.cols) * 4); !s.ok()) return s;
    QuantizeBoth both;
    both.x = x;
    both.column_format = format;
    both.column_codes = codes.as<void>();
    both.column_ld = ld;
    both.column_scale = scale.as<float>();
    both.stream = stream;
    return quantize_both(both);
  }
};

}  // namespace

Status grad_input_e4m3_row_sm90(const GradInputArgs& args) {
  if (Status status = validate(args, Numerics::e4m3_row); !status.ok()) return status;
  const PackedWeight& w = *args.weight;
  const std::int64_t m = args.grad.rows, n = w.n(), k = w.k(), inner = padded(n, 16);
  if (m == 0 || k == 0) return {};
  if (m > INT_MAX || n > INT_MAX - 16 || k > INT_MAX)
    return Status::unsupported("linear_grad_input: the CUDA kernel takes up to 2^31 - 1 rows and columns");
  if (Status s = expect_readable(args); !s.ok()) return s;
  const DeviceGuard guard(args.grad_x.data);
  if (Status s = expect_capability("linear_grad_input", 9, 0); !s.ok()) return s;
  const cudaStream_t stream = static_cast<cudaStream_t>(args.stream);
  if (n == 0) return zeros(args.grad_x, stream);

  StreamBuffer grads(stream), scale(stream), weights(stream);
  if (Status s = grads.allocate(static_cast<std::size_t>(m * inner)); !s.ok()) return s;
  if (Status s = scale.allocate(static_cast<std::size_t>(m) * 4); !s.ok()) return s;
  if (Status s = weights.allocate(static_cast<std::size_t>(k * inner)); !s.ok()) return s;
  const QuantizeArgs quantize{.x = args.grad,
                              .format = DType::e5m2,
                              .scaling = Scaling::row,
                              .codes = grads.as<void>(),
                              .scale = scale.as<float>(),
                              .stream = args.stream};
  if (Status s = quantize_row_padded(quantize, inner, w.scale()); !s.ok()) return s;  // W's scales lie along the sum
  if (Status s = transpose_codes(w.codes(), n, k, weights.as<void>(), inner, stream); !s.ok()) return s;

  Gemm g;
  g.m = static_cast<int>(m);
  g.n = static_cast<int>(k);
  g.k = static_cast<int>(inner);
  g.x = grads.as<void>();
  g.w = weights.as<void>();
  g.ldx = g.ldw = inner;
  g.x_scale = scale.as<float>();
  g.d = args.grad_x.data;
  g.ldd = args.grad_x.row_stride;
  g.d_dtype = args.grad_x.dtype;
  return run_best(request_of(g, Product::e5m2), g, stream);
}

Status grad_weight_e4m3_row_sm90(const GradWeightArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  const std::int64_t m = args.x.rows, n = args.grad.cols, k = args.x.cols;
  if (n == 0 || k == 0) return {};
  if (m > INT_MAX - 16 || n > INT_MAX || k > INT_MAX)
    return Status::unsupported("linear_grad_weight: the CUDA kernel takes up to 2^31 - 1 rows and columns");
  if (Status s = expect_readable(args); !s.ok()) return s;
  const DeviceGuard guard(args.grad_weight.data);
  if (Status s = expect_capability("linear_grad_weight", 9, 0); !s.ok()) return s;
  const cudaStream_t stream = static_cast<cudaStream_t>(args.stream);
  if (m == 0) return zeros(args.grad_weight, stream);

  Columns grad(stream), x(stream);
  if (Status s = grad.make(args.grad, DType::e5m2, stream); !s.ok()) return s;
  if (Status s = x.make(args.x, DType::e4m3, stream); !s.ok()) return s;
  Gemm g;
  g.m = static_cast<int>(n);
  g.n = static_cast<int>(k);
  g.x = grad.codes.as<void>();
  g.ldx = grad.ld;
  g.x_scale = grad.scale.as<float>();
  g.w = x.codes.as<void>();
  g.ldw = x.ld;
  g.w_scale = x.scale.as<float>();
  return sum_over_rows(g, Product::e5m2, Major::k, m, 1, 1, args.grad_weight, stream);
}

}  // namespace octavo::cuda
