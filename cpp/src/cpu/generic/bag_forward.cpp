// Pooled rows of many tables, plain C++: the reference of every hand-written bag kernel.
#include "cpu/bag_partition.hpp"
#include "cpu/bag_prefetch.hpp"
#include "cpu/generic/bag_rows.hpp"
#include "octavo/memory.hpp"
#include "octavo/threading.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {

Status bag_forward(const BagForwardArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  const BagIndices& in = args.indices;
  const E4m3Values e4m3;
  const auto scratch_bytes = static_cast<std::size_t>(widest(args.tables, in.num_tables)) * sizeof(float);
  std::int64_t outside = 0;
  parallel_region(bag_threads(args.tables, in), [&](int thread, int count) {
    auto* acc = static_cast<float*>(scratch(0, scratch_bytes));
    const BagSpan span = bag_span(args.tables, in, thread, count);
    BagPrefetch prefetch(args.tables, in, in.num_tables * in.batch, span.table, span.first_value, span.last_value);
    std::int64_t found = 0;
    for_each_bag_range(args.tables, in, thread, count, [&](std::int64_t t, std::int64_t column, Range bags) {
      const TableView& table = args.tables[t];
      for (std::int64_t b = bags.begin; b < bags.end; ++b) {
        const std::int64_t begin = in.first_value(t, b), end = in.first_value(t, b + 1);
        for (std::int64_t c = 0; c < table.dim; ++c) acc[c] = 0;
        std::int64_t kept = 0;
        for (std::int64_t v = begin; v < end; ++v) {
          if (v >= prefetch.aim().until) prefetch.advance(v);
          prefetch.fetch(in.values[v + prefetch.aim().ahead]);
          const std::int64_t row = in.values[v];
          if (static_cast<std::uint64_t>(row) >= static_cast<std::uint64_t>(table.num_rows)) continue;
          add_row(table, e4m3, row, in.weights != nullptr ? in.weights[v] : 1.0f, acc);
          ++kept;
        }
        found += end - begin - kept;
        if (table.pooling == Pooling::mean && kept > 1)
          for (std::int64_t c = 0; c < table.dim; ++c) acc[c] /= static_cast<float>(kept);
        store_row(args.out, b, column, table.dim, acc);
      }
    });
    if (found != 0) __atomic_fetch_add(&outside, found, __ATOMIC_RELAXED);
  });
  return report_outside(args, outside);
}

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
