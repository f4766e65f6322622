// Checks shared by every kernel of a linear layer's gradients.
#include "octavo/linear_backward.hpp"

namespace octavo {
namespace {

bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16; }
std::string shape(std::int64_t rows, std::int64_t cols) {
  return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
}

Status expect(const char* op, const char* argument, const MatrixView& v, std::int64_t rows, std::int64_t cols) {
  const std::string name = std::string(op) + ": " + argument;
  if (!is_float(v.dtype)) return Status::invalid(name + " must be float32 or bfloat16");
  if (v.rows != rows || v.cols != cols)
    return Status::invalid(name + " is " + shape(v.rows, v.cols) + ", expected " + shape(rows, cols));
  return {};
}

}  // namespace

Status validate(const EpilogueBackwardArgs& args) {
  constexpr const char* kOp = "linear_epilogue_backward";
  const Epilogue& e = args.epilogue;
  const std::int64_t m = args.grad.rows, n = args.grad.cols;
  if (Status status = expect(kOp, "grad", args.grad, m, n); !status.ok()) return status;
  if (e.norm != NormKind::none || e.activation != Activation::none) {
    if (Status status = expect(kOp, "z", args.z, m, n); !status.ok()) return status;
    if (args.z.dtype != args.grad.dtype)
      return Status::invalid("linear_epilogue_backward: z and grad must have the same type");
  }
  if (args.grad_z.data != nullptr)
    if (Status status = expect(kOp, "grad_z", args.grad_z, m, n); !status.ok()) return status;
  if (args.grad_extra.data != nullptr)
    if (Status status = expect(kOp, "grad_extra", args.grad_extra, m, n); !status.ok()) return status;
  const bool affine = e.norm == NormKind::layer || e.norm == NormKind::rms || e.norm == NormKind::swish_rms;
  if ((args.grad_norm_weight != nullptr && !affine) || (args.grad_norm_bias != nullptr && e.norm != NormKind::layer))
    return Status::invalid("linear_epilogue_backward: this norm has no such parameter; leave its gradient out");
  if (e.norm == NormKind::block && e.norm_block <= 0)
    return Status::invalid("linear_epilogue_backward: norm block must be positive");
  return {};
}

Status validate(const GradInputArgs& args, Numerics numerics) {
  if (args.weight == nullptr) return Status::invalid("linear_grad_input: weight is missing");
  const PackedWeight& w = *args.weight;
  if (numerics != Numerics::bf16 && (w.format() != weight_format(numerics) || w.scaling() != weight_scaling(numerics)))
    return Status::invalid(std::string("linear_grad_input: class ") + to_string(numerics) +
                           " needs a weight packed in its own format with its own scales; use class bf16");
  if (Status status = expect("linear_grad_input", "grad", args.grad, args.grad.rows, w.n()); !status.ok())
    return status;
  return expect("linear_grad_input", "grad_x", args.grad_x, args.grad.rows, w.k());
}

Status validate(const GradWeightArgs& args) {
  constexpr const char* kOp = "linear_grad_weight";
  if (Status status = expect(kOp, "grad", args.grad, args.x.rows, args.grad.cols); !status.ok()) return status;
  if (Status status = expect(kOp, "x", args.x, args.x.rows, args.x.cols); !status.ok()) return status;
  if (args.grad_weight.dtype != DType::f32) return Status::invalid("linear_grad_weight: grad_weight must be float32");
  return expect(kOp, "grad_weight", args.grad_weight, args.grad.cols, args.x.cols);
}

}  // namespace octavo
