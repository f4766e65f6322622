#include "octavo/add_norm.hpp"

namespace octavo {

Status validate(const AddNormArgs& args) {
  if (args.part_count < 1) return Status::invalid("add_norm: parts is empty; pass at least one");
  const BatchView& first = args.parts[0];
  if (first.dtype != DType::f32 && first.dtype != DType::bf16)
    return Status::invalid("add_norm: parts must be float32 or bfloat16");
  const auto check = [&](const BatchView& v, const char* name, std::int64_t rows) -> Status {
    if (v.dtype != first.dtype)
      return Status::invalid(std::string("add_norm: ") + name + " differs in type from parts");
    if (v.cols != first.cols || v.rows != rows)
      return Status::invalid(std::string("add_norm: ") + name + " is [" + std::to_string(v.rows) + ", " +
                             std::to_string(v.cols) + "] a sample; expected [" + std::to_string(rows) + ", " +
                             std::to_string(first.cols) + "]");
    if (v.rows > 1 && v.cols > 1 && v.row_stride != 1 && v.col_stride != 1)
      return Status::invalid(std::string("add_norm: ") + name +
                             " must be contiguous in one of its last two dimensions");
    return {};
  };
  for (int i = 0; i < args.part_count; ++i)
    if (Status s = check(args.parts[i], "a part", args.parts[i].rows); !s.ok()) return s;
  if (args.residual.data != nullptr) return check(args.residual, "residual", args.tokens());
  return {};
}

}  // namespace octavo
