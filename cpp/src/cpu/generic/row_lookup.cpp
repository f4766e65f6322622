// Rows without pooling, plain C++.
#include "cpu/bag_partition.hpp"
#include "cpu/bag_prefetch.hpp"
#include "cpu/generic/bag_rows.hpp"
#include "octavo/memory.hpp"
#include "octavo/threading.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {

Status row_lookup(const RowLookupArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  const BagIndices& in = args.indices;
  const E4m3Values e4m3;
  const auto scratch_bytes = static_cast<std::size_t>(widest(args.tables, in.num_tables)) * sizeof(float);
  std::int64_t outside = 0;
  parallel_region(lookup_threads(args.tables, in), [&](int thread, int count) {
    auto* acc = static_cast<float*>(scratch(0, scratch_bytes));
    const BagSpan span = lookup_span(args.tables, in, thread, count);
    BagPrefetch prefetch(args.tables, in, in.num_values, span.table, span.first_value, span.last_value);
    std::int64_t found = 0;
    for_each_lookup_range(args.tables, in, thread, count, [&](std::int64_t t, Range mine) {
      const TableView& table = args.tables[t];
      const std::int64_t first = in.first_value(t, 0);
      for (std::int64_t v = mine.begin; v < mine.end; ++v) {
        if (v >= prefetch.aim().until) prefetch.advance(v);
        prefetch.fetch(in.values[v + prefetch.aim().ahead]);
        const std::int64_t row = in.values[v];
        for (std::int64_t c = 0; c < table.dim; ++c) acc[c] = 0;
        if (static_cast<std::uint64_t>(row) < static_cast<std::uint64_t>(table.num_rows))
          add_row(table, e4m3, row, 1.0f, acc);
        else
          ++found;
        store_row(args.outs[t], v - first, 0, table.dim, acc);
      }
    });
    if (found != 0) __atomic_fetch_add(&outside, found, __ATOMIC_RELAXED);
  });
  return report_outside(args, outside);
}

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
