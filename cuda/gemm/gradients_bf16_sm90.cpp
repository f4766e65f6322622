// Gradients of a linear layer in BF16 on Hopper. BF16 operands may be read across their rows, so neither W nor x nor
// the gradient is transposed in memory. Copies are made only of what is FP32, of eight-bit weights, and of sizes that
// are no multiple of 8.
#include <algorithm>
#include <climits>

#include "gemm/layers.hpp"
#include "gemm/sums_over_rows.hpp"
#include "kernels.hpp"

namespace octavo::cuda {

Status grad_input_bf16_sm90(const GradInputArgs& args) {
  if (Status status = validate(args, Numerics::bf16); !status.ok()) return status;
  const PackedWeight& w = *args.weight;
  const std::int64_t m = args.grad.rows, n = w.n(), k = w.k();
  if (m == 0 || k == 0) return {};
  if (m > INT_MAX || n > INT_MAX - 8 || k > INT_MAX - 8)
    return Status::unsupported("linear_grad_input: the CUDA kernel takes up to 2^31 - 1 rows and columns");
  if (Status s = expect_readable(args); !s.ok()) return s;
  const DeviceGuard guard(args.grad_x.data);
  if (Status s = expect_capability("linear_grad_input", 9, 0); !s.ok()) return s;
  const cudaStream_t stream = static_cast<cudaStream_t>(args.stream);
  const std::int64_t inner = padded(std::max<std::int64_t>(n, 1), 8), outer = padded(k, 8);

  StreamBuffer grads(stream), weights(stream), wide(stream);
  Operand grad, weight;
  if (Status s = bf16_operand(args.grad, nullptr, m, inner, stream, grads, grad); !s.ok()) return s;
  const MatrixView codes{const_cast<void*>(w.codes()), n, k, k, w.format()};
  if (Status s = bf16_operand(codes, w.scale(), inner, outer, stream, weights, weight, w.scaling()); !s.ok()) return s;

  Gemm g;
  g.m = static_cast<int>(m);
  g.n = static_cast<int>(outer);
  g.k = static_cast<int>(inner);
  g.x = grad.data;
  g.ldx = grad.ld;
  g.w = weight.data;  // [N, K], read along K: the product's n
  g.ldw = weight.ld;
  MatrixView out = args.grad_x;
  if (outer != k) {
    if (Status s = wide.allocate(static_cast<std::size_t>(m * outer) * size_of(out.dtype)); !s.ok()) return s;
    out = {wide.as<void>(), m, outer, outer, out.dtype};
  }
  g.d = out.data;
  g.ldd = out.row_stride;
  g.d_dtype = out.dtype;
  if (Status s = run_best(request_of(g, Product::bf16, Major::k, Major::mn), g, stream); !s.ok()) return s;
  if (outer == k) return {};
  const std::size_t element = size_of(out.dtype);
  return checked(
      cudaMemcpy2DAsync(args.grad_x.data, static_cast<std::size_t>(args.grad_x.row_stride) * element, out.data,
                        static_cast<std::size_t>(outer) * element, static_cast<std::size_t>(k) * element,
                        static_cast<std::size_t>(m), cudaMemcpyDeviceToDevice, stream),
      "linear_grad_input");
}

Status grad_weight_bf16_sm90(const GradWeightArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  const std::int64_t m = args.x.rows, n = args.grad.cols, k = args.x.cols;
  if (n == 0 || k == 0) return {};
  if (m > INT_MAX || n > INT_MAX - 8 || k > INT_MAX - 8)
    return Status::unsupported("linear_grad_weight: the CUDA kernel takes up to 2^31 - 1 rows and columns");
  if (Status s = expect_readable(args); !s.ok()) return s;
  const DeviceGuard guard(args.grad_weight.data);
  if (Status s = expect_capability("linear_grad_weight", 9, 0); !s.ok()) return s;
  const cudaStream_t stream = static_cast<cudaStream_t>(args.stream);

  StreamBuffer grads(stream), inputs(stream);
  Operand grad, x;
  if (Status s = bf16_operand(args.grad, nullptr, m, padded(n, 8), stream, grads, grad); !s.ok()) return s;
  if (Status s = bf16_operand(args.x, nullptr, m, padded(k, 8), stream, inputs, x); !s.ok()) return s;
  Gemm g;
  g.m = static_cast<int>(padded(n, 8));
  g.n = static_cast<int>(padded(k, 8));
  g.x = grad.data;  // both [M, ...], read across their rows
  g.ldx = grad.ld;
  g.w = x.data;
  g.ldw = x.ld;
  return sum_over_rows(g, Product::bf16, Major::mn, m, grad.ld, x.ld, args.grad_weight, stream);
}

}  // namespace octavo::cuda
