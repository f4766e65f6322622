#include "octavo/add_norm.hpp"

namespace octavo {
namespace {

bool is_float(DType type) { return type == DType::f32 || type == DType::bf16; }

// Whether `v` is [rows, cols of `first`] a sample, of its type, one of its strides 1.
Status check(const BatchView& v, const BatchView& first, const char* name, std::int64_t rows) {
  if (v.dtype != first.dtype) return Status::invalid(std::string("add_norm: ") + name + " differs in type from parts");
  if (v.cols != first.cols || v.rows != rows)
    return Status::invalid(std::string("add_norm: ") + name + " is [" + std::to_string(v.rows) + ", " +
                           std::to_string(v.cols) + "] a sample; expected [" + std::to_string(rows) + ", " +
                           std::to_string(first.cols) + "]");
  if (v.rows > 1 && v.cols > 1 && v.row_stride != 1 && v.col_stride != 1)
    return Status::invalid(std::string("add_norm: ") + name + " must be contiguous in one of its last two dimensions");
  return {};
}

}  // namespace

Status validate(const AddNormArgs& args) {
  if (args.part_count < 1) return Status::invalid("add_norm: parts is empty; pass at least one");
  const BatchView& first = args.parts[0];
  if (!is_float(first.dtype)) return Status::invalid("add_norm: parts must be float32 or bfloat16");
  for (int i = 0; i < args.part_count; ++i)
    if (Status s = check(args.parts[i], first, "a part", args.parts[i].rows); !s.ok()) return s;
  if (args.residual.data != nullptr) return check(args.residual, first, "residual", args.tokens());
  return {};
}

Status validate(const AddNormBackwardArgs& args) {
  const BatchView& first = args.grad.data != nullptr ? args.grad : args.grad_transposed;
  if (first.data == nullptr) return Status::invalid("add_norm: a backward needs a gradient of y or of y^T");
  if (!is_float(first.dtype)) return Status::invalid("add_norm: gradients must be float32 or bfloat16");
  if (args.norm != NormKind::none && args.z == nullptr)
    return Status::invalid("add_norm: the backward of a norm needs what it saw");
  if (Status s = check(first, first, "a gradient", first.rows); !s.ok()) return s;
  if (args.grad_transposed.data != nullptr)
    return check(args.grad_transposed, first, "the gradient of y^T", first.rows);
  return {};
}

}  // namespace octavo
