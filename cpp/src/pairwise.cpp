#include "octavo/pairwise.hpp"

#include <algorithm>

#include "octavo/threading.hpp"

namespace octavo {

std::int64_t PairwiseArgs::rows() const { return x_pairs == Pairs::all ? x.rows : y.cols; }

bool PairwiseArgs::is_symmetric() const {
  return x_pairs == Pairs::all && x.data == y.data && x.dtype == y.dtype && x.rows == y.rows &&
         x.batch_stride == y.batch_stride && x.row_stride == y.row_stride && x.col_stride == y.col_stride;
}

Status validate(const PairwiseArgs& args) {
  const auto is_float = [](DType dtype) { return dtype == DType::f32 || dtype == DType::bf16; };
  const auto size = [](std::int64_t n) { return std::to_string(n); };
  if (!is_float(args.x.dtype)) return Status::invalid("pairwise_dots: x must be float32 or bfloat16");
  if (!is_float(args.y.dtype)) return Status::invalid("pairwise_dots: y must be float32 or bfloat16");
  if (!is_float(args.out_dtype)) return Status::invalid("pairwise_dots: out_dtype must be float32 or bfloat16");
  const auto dense = [](const BatchView& v) {
    return v.rows <= 1 || v.cols <= 1 || v.row_stride == 1 || v.col_stride == 1;
  };
  if (!dense(args.x)) return Status::invalid("pairwise_dots: x must be contiguous in one of its last two dimensions");
  if (!dense(args.y)) return Status::invalid("pairwise_dots: y must be contiguous in one of its last two dimensions");
  const std::int64_t depth = args.depth(), triangle = depth * (depth - 1) / 2;
  if (args.x_pairs == Pairs::all && args.x.cols != depth)
    return Status::invalid("pairwise_dots: x has rows of " + size(args.x.cols) + " and y of " + size(depth) +
                           "; they must be equally long");
  if (args.x_pairs != Pairs::all && (args.x.rows != 1 || args.x.cols != triangle))
    return Status::invalid("pairwise_dots: x is a triangle of " + size(args.x.cols) + " products; expected " +
                           size(triangle) + " for y's " + size(depth) + " columns");
  if (args.pairs != Pairs::all && args.rows() != args.y.rows)
    return Status::invalid("pairwise_dots: a triangle needs as many rows in y as in x, found " + size(args.y.rows) +
                           " and " + size(args.rows()));
  return {};
}

PairwiseShares share_samples(const PairwiseArgs& args) {
  constexpr std::int64_t kSerialMacs = 60000;  // a fork costs more than this much work
  const std::int64_t cells = args.rows() * args.y.rows;
  const std::int64_t per_sample = cells * std::max<std::int64_t>(args.depth(), 1);
  const bool small = args.batch * cells < kSerialMacs && args.batch * per_sample < kSerialMacs;
  const int count = small ? 1 : threads();
  if (args.batch >= count) return {count, 1};
  return {count, (count + args.batch - 1) / std::max<std::int64_t>(args.batch, 1)};
}

}  // namespace octavo
