// Checks shared by every embedding-bag kernel, all of them before a kernel writes anything.
#include "octavo/embedding.hpp"

#include <algorithm>
#include <string>

#include "octavo/threading.hpp"

namespace octavo {
namespace {

using std::to_string;

constexpr std::int64_t kValuesPerThread = 1 << 15;

// Sign bit set when some value is outside [0, rows). Wrapping arithmetic: a negative value sets the bit by itself.
std::uint64_t outside(const std::int64_t* values, std::int64_t n, std::int64_t rows) {
  const auto last = static_cast<std::uint64_t>(rows - 1);
  std::uint64_t signs = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const auto v = static_cast<std::uint64_t>(values[i]);
    signs |= v | (last - v);
  }
  return signs >> 63;
}

bool any_outside(const TableView* tables, const BagIndices& indices) {
  const int count = static_cast<int>(std::clamp<std::int64_t>(indices.num_values / kValuesPerThread, 1, threads()));
  constexpr int kMaxParts = 256;
  std::uint64_t found[kMaxParts] = {};
  const int parts = std::min(count, kMaxParts);
  parallel_region(parts, [&](int thread, int n) {
    const Range mine = partition(indices.num_values, thread, n);
    for (std::int64_t t = 0; t < indices.num_tables; ++t) {
      const std::int64_t begin = std::max(mine.begin, indices.offsets[t * indices.batch]);
      const std::int64_t end = std::min(mine.end, indices.offsets[(t + 1) * indices.batch]);
      if (begin < end) found[thread] |= outside(indices.values + begin, end - begin, tables[t].num_rows);
    }
  });
  return std::any_of(found, found + parts, [](std::uint64_t f) { return f != 0; });
}

std::string name_of(const TableView& table, std::int64_t t) {
  return table.name != nullptr ? "table '" + std::string(table.name) + "'" : "table " + to_string(t);
}

// Slow path: what is wrong, where, and how often.
Status describe_outside(const TableView* tables, const BagIndices& indices, Bounds bounds, std::int64_t& skipped) {
  for (std::int64_t t = 0; t < indices.num_tables; ++t)
    for (std::int64_t b = 0; b < indices.batch; ++b) {
      const std::int64_t* offsets = indices.offsets + t * indices.batch + b;
      for (std::int64_t v = offsets[0]; v < offsets[1]; ++v) {
        const std::int64_t row = indices.values[v];
        if (row >= 0 && row < tables[t].num_rows) continue;
        if (bounds == Bounds::error)
          return Status::range("values: " + name_of(tables[t], t) + ", bag " + to_string(b) + ": row index " +
                               to_string(row) + " at position " + to_string(v) + " is outside [0, " +
                               to_string(tables[t].num_rows) + "); fix the ids, or set bounds to 'warn' or 'ignore'");
        ++skipped;
      }
    }
  return {};
}

Status validate_formats(const TableView* tables, std::int64_t count) {
  for (std::int64_t t = 0; t < count; ++t) {
    switch (tables[t].dtype) {
      case DType::f32:
      case DType::f16:
      case DType::bf16:
      case DType::e4m3:
      case DType::u8:
      case DType::u4: break;
      default:
        return Status::invalid(name_of(tables[t], t) +
                               ": rows must be FP32, FP16, BF16, E4M3, unsigned INT8 or unsigned INT4");
    }
  }
  return {};
}

Status report(const TableView* tables, const BagIndices& indices, Bounds bounds, std::int64_t outside,
              std::int64_t* count) {
  std::int64_t skipped = 0;
  if (outside != 0 && bounds == Bounds::error) return describe_outside(tables, indices, bounds, skipped);
  if (count != nullptr) *count = outside;
  return {};
}

Status validate_matrix(const TableView* tables, const BagIndices& indices, const MatrixView& matrix,
                       const char* matrix_name) {
  if (indices.num_tables <= 0) return Status::invalid("tables: expected at least one table");
  std::int64_t dims = 0;
  for (std::int64_t t = 0; t < indices.num_tables; ++t) dims += tables[t].dim;
  if (matrix.rows != indices.batch || matrix.cols != dims)
    return Status::invalid(std::string(matrix_name) + ": is [" + to_string(matrix.rows) + ", " +
                           to_string(matrix.cols) + "], expected [" + to_string(indices.batch) + ", " +
                           to_string(dims) + "]");
  return {};
}

}  // namespace

Status validate(const BagIndices& indices) {
  const std::int64_t bags = indices.num_tables * indices.batch;
  const std::int64_t* offsets = indices.offsets;
  if (offsets[0] != 0) return Status::invalid("offsets: must start at 0, offsets[0] is " + to_string(offsets[0]));
  std::uint64_t signs = 0;
  for (std::int64_t b = 0; b < bags; ++b) {
    const auto next = static_cast<std::uint64_t>(offsets[b + 1]);
    signs |= next | (next - static_cast<std::uint64_t>(offsets[b]));
  }
  if (signs >> 63 != 0)
    for (std::int64_t b = 0; b < bags; ++b)
      if (offsets[b + 1] < offsets[b])
        return Status::invalid("offsets: must never decrease, but offsets[" + to_string(b + 1) +
                               "] = " + to_string(offsets[b + 1]) + " follows " + to_string(offsets[b]));
  if (offsets[bags] != indices.num_values)
    return Status::invalid("offsets: must end at the number of values (" + to_string(indices.num_values) +
                           "), but the last offset is " + to_string(offsets[bags]));
  return {};
}

Status validate_shapes(const BagForwardArgs& args) {
  if (args.out.dtype != DType::f32 && args.out.dtype != DType::bf16)
    return Status::invalid("out_dtype: must be float32 or bfloat16");
  if (Status status = validate_formats(args.tables, args.indices.num_tables); !status.ok()) return status;
  return validate_matrix(args.tables, args.indices, args.out, "out");
}

Status validate(const BagForwardArgs& args) {
  if (Status status = validate_shapes(args); !status.ok()) return status;
  return validate(args.indices);
}

Status validate_shapes(const RowLookupArgs& args) {
  const BagIndices& in = args.indices;
  if (in.num_tables <= 0) return Status::invalid("tables: expected at least one table");
  if (in.weights != nullptr) return Status::invalid("weights: lookups without pooling have none");
  if (Status status = validate_formats(args.tables, in.num_tables); !status.ok()) return status;
  for (std::int64_t t = 0; t < in.num_tables; ++t) {
    const MatrixView& out = args.outs[t];
    if (out.dtype != args.outs[0].dtype || (out.dtype != DType::f32 && out.dtype != DType::bf16))
      return Status::invalid("out_dtype: must be float32 or bfloat16, the same for every table");
    if (out.cols != args.tables[t].dim)
      return Status::invalid("out of " + name_of(args.tables[t], t) + ": has " + to_string(out.cols) +
                             " columns, expected " + to_string(args.tables[t].dim));
  }
  return {};
}

Status validate(const RowLookupArgs& args) {
  const BagIndices& in = args.indices;
  if (Status status = validate_shapes(args); !status.ok()) return status;
  if (Status status = validate(in); !status.ok()) return status;
  for (std::int64_t t = 0; t < in.num_tables; ++t) {
    const std::int64_t lookups = in.first_value(t + 1, 0) - in.first_value(t, 0);
    if (args.outs[t].rows != lookups)
      return Status::invalid("out of " + name_of(args.tables[t], t) + ": has " + to_string(args.outs[t].rows) +
                             " rows, expected one a lookup, " + to_string(lookups));
  }
  return {};
}

Status report_outside(const BagForwardArgs& args, std::int64_t outside) {
  return report(args.tables, args.indices, args.bounds, outside, args.out_of_bounds);
}

Status report_outside(const RowLookupArgs& args, std::int64_t outside) {
  return report(args.tables, args.indices, args.bounds, outside, args.out_of_bounds);
}

Status validate(const OptimizerConfig& optimizer) {
  if (optimizer.kind != OptimizerConfig::Kind::adam) return {};
  const auto decays = [](float beta) { return beta >= 0.0f && beta < 1.0f; };
  if (!decays(optimizer.beta1) || !decays(optimizer.beta2))
    return Status::invalid("betas: found (" + to_string(optimizer.beta1) + ", " + to_string(optimizer.beta2) +
                           "), expected two numbers in [0, 1)");
  if (optimizer.step < 1)
    return Status::invalid("step: found " + to_string(optimizer.step) + "; Adam counts its updates from 1");
  return {};
}

Status validate_shapes(const BagBackwardArgs& args) {
  using Kind = OptimizerConfig::Kind;
  const bool stateful = args.optimizer.kind != Kind::none && args.optimizer.kind != Kind::sgd;
  const BagIndices& in = args.indices;
  if (Status status = validate(args.optimizer); !status.ok()) return status;
  if (Status status = validate_formats(args.tables, in.num_tables); !status.ok()) return status;
  if (args.grad_out.dtype != DType::f32) return Status::invalid("grad_out: must be float32");
  const auto payload = static_cast<std::uint64_t>(std::max(in.num_values, in.batch));
  if (payload >= std::uint64_t{1} << 31)
    return Status::unsupported("values: at most 2^31 - 1 lookups and bags in one backward; split the batch");
  for (std::int64_t t = 0; t < in.num_tables; ++t) {
    const TableView& table = args.tables[t];
    const DType rows = table.dtype;
    if (table.scale_exponents != nullptr)
      return Status::unsupported(name_of(table, t) + ": rows with power-of-two scales do not train; use FP32 scales");
    if (table.num_rows > 0 && table.scale == nullptr && (rows == DType::e4m3 || rows == DType::u8 || rows == DType::u4))
      return Status::invalid(name_of(table, t) + ": E4M3, INT8 and INT4 rows need their scales");
    if (stateful && table.optimizer_state == nullptr && table.num_rows > 0)
      return Status::invalid(name_of(table, t) + ": this optimizer needs state, and the table has none");
    if (table.num_rows >= std::int64_t{1} << 32)  // a row and a lookup share a 64-bit sort key
      return Status::unsupported(name_of(table, t) + ": at most 2^32 - 1 rows train in one table; split it");
  }
  return validate_matrix(args.tables, in, args.grad_out, "grad_out");
}

Status validate(const BagBackwardArgs& args, std::int64_t& skipped) {
  const BagIndices& in = args.indices;
  skipped = 0;
  if (Status status = validate_shapes(args); !status.ok()) return status;
  if (Status status = validate(in); !status.ok()) return status;
  return any_outside(args.tables, in) ? describe_outside(args.tables, in, args.bounds, skipped) : Status{};
}

}  // namespace octavo
