// Backward of embedding bags fused with the optimizer, plain C++: each touched row is read and written once.
#include <cmath>

#include "cpu/bag_runs.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kPrefetchLookups = 16;

void update_row(const TableView& table, std::uint64_t row, const OptimizerConfig& optimizer, float* __restrict g) {
  float* __restrict x = static_cast<float*>(table.rows) + static_cast<std::int64_t>(row) * table.row_stride;
  const std::int64_t dim = table.dim;
  if (optimizer.weight_decay != 0.0f)
    for (std::int64_t c = 0; c < dim; ++c) g[c] += optimizer.weight_decay * x[c];
  float step = optimizer.lr;
  if (optimizer.kind == OptimizerConfig::Kind::row_wise_adagrad) {
    float squares[8] = {};
    std::int64_t c = 0;
    for (; c + 8 <= dim; c += 8)
      for (int i = 0; i < 8; ++i) squares[i] += g[c + i] * g[c + i];
    for (; c < dim; ++c) squares[c & 7] += g[c] * g[c];
    const float sum = ((squares[0] + squares[4]) + (squares[2] + squares[6])) +
                      ((squares[1] + squares[5]) + (squares[3] + squares[7]));
    const float state = table.optimizer_state[row] + sum / static_cast<float>(dim);
    table.optimizer_state[row] = state;
    step /= std::sqrt(state) + optimizer.eps;
  }
  for (std::int64_t c = 0; c < dim; ++c) x[c] -= step * g[c];
}

void prefetch_row(const TableView& table, std::uint64_t row) {
  const char* x = reinterpret_cast<const char*>(static_cast<const float*>(table.rows) +
                                                static_cast<std::int64_t>(row) * table.row_stride);
  for (std::int64_t byte = 0; byte < table.dim * 4; byte += 64) __builtin_prefetch(x + byte, 0, 2);
  if (table.optimizer_state != nullptr) __builtin_prefetch(table.optimizer_state + row, 0, 2);
}

void run_share(const BagBackwardArgs& args, const BagShare& share, bool check) {
  const TableView& table = args.tables[share.table];
  const std::int64_t dim = table.dim;
  const SortedLookups sorted = sort_lookups(args, share, check);
  auto* sum = static_cast<float*>(scratch(kSums, static_cast<std::size_t>(dim) * sizeof(float)));
  for (std::int64_t i = 0; i < sorted.size;) {
    const std::uint64_t row = sorted.row(i);
    const float* x = static_cast<const float*>(table.rows) + static_cast<std::int64_t>(row) * table.row_stride;
    for (std::int64_t c = 0; c < dim; ++c) sum[c] = 0;
    for (; i < sorted.size && sorted.row(i) == row; ++i) {
      if (i + kPrefetchLookups < sorted.size) prefetch_row(table, sorted.row(i + kPrefetchLookups));
      const std::int64_t payload = sorted.payload(i), bag = sorted.bag(payload);
      const float weight = sorted.weight(payload);
      const float* __restrict g =
          static_cast<const float*>(args.grad_out.data) + bag * args.grad_out.row_stride + share.column;
      for (std::int64_t c = 0; c < dim; ++c) sum[c] += weight * g[c];
      if (args.grad_weights != nullptr) {
        float dot = 0;
        for (std::int64_t c = 0; c < dim; ++c) dot += g[c] * x[c];
        args.grad_weights[sorted.first_value + payload] =
            sorted.inverse_count != nullptr ? dot * sorted.inverse_count[bag] : dot;
      }
    }
    if (args.optimizer.kind != OptimizerConfig::Kind::none && dim > 0) update_row(table, row, args.optimizer, sum);
  }
}

}  // namespace

Status bag_backward(const BagBackwardArgs& args) {
  std::int64_t skipped;
  if (Status status = validate(args, skipped); !status.ok()) return status;
  const int count = backward_threads(args.indices);
  const BagShares shares = share_tables(args.tables, args.indices, count);
  parallel_region(count, [&](int thread, int) {
    for (std::int64_t s = 0; s < shares.size; ++s)
      if (shares.begin[s].owner == thread) run_share(args, shares.begin[s], skipped != 0);
  });
  return {};
}

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
