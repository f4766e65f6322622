#include "octavo/grouped.hpp"

#include <algorithm>
#include <vector>

#include "octavo/threading.hpp"

namespace octavo {
namespace {

constexpr std::int64_t kRowGrain = 24;  // rows of a call that two threads cut: whole tiles of every kernel

// Microseconds on one thread by the kernel's prior.
double cost_of(const GroupedLinear& call) {
  const LinearArgs& a = call.args;
  const double m = static_cast<double>(a.x.rows), n = static_cast<double>(a.y.cols), k = static_cast<double>(a.x.cols);
  const double bytes = m * k * static_cast<double>(size_of(a.x.dtype)) +
                       m * n * static_cast<double>(size_of(a.y.dtype)) +
                       n * k * static_cast<double>(size_of(a.weight->format()));
  const CostPrior& prior = call.kernel->cost;
  return prior.overhead_us + std::max(m * n * k / (prior.gmacs_per_s * 1e3), bytes / (prior.gbytes_per_s * 1e3));
}

MatrixView rows_of(MatrixView view, Range rows) {
  view.data = static_cast<char*>(view.data) + rows.begin * view.row_stride * static_cast<int>(size_of(view.dtype));
  view.rows = rows.end - rows.begin;
  return view;
}

LinearArgs rows_of(LinearArgs args, Range rows) {
  args.x = rows_of(args.x, rows);
  args.y = rows_of(args.y, rows);
  const std::int64_t x_scales = args.weight->scaling() == Scaling::row ? 1 : scale_blocks(args.x.cols);
  if (args.x_scale != nullptr) args.x_scale += rows.begin * x_scales;
  if (args.y_scale != nullptr) args.y_scale += rows.begin;
  if (args.epilogue.saved.data != nullptr) args.epilogue.saved = rows_of(args.epilogue.saved, rows);
  if (args.epilogue.residual.data != nullptr) args.epilogue.residual = rows_of(args.epilogue.residual, rows);
  return args;
}

// The row of a call of `rows` rows that lies `share` of its cost from its start, where threads may cut.
std::int64_t cut(std::int64_t rows, double share) {
  if (share <= 0) return 0;
  if (share >= 1) return rows;
  const std::int64_t grain = rows < 2 * kRowGrain ? std::max<std::int64_t>(rows, 1) : kRowGrain;
  return std::min(
      rows, static_cast<std::int64_t>(share * static_cast<double>(rows) / static_cast<double>(grain) + 0.5) * grain);
}

}  // namespace

Status run_grouped(const GroupedLinear* calls, std::size_t count) {
  constexpr double kSerialUs = 20;  // waking the threads costs about as much
  std::vector<double> ends(count);  // cost of calls 0 .. i together
  double total = 0;
  bool on_cpu = true;
  for (std::size_t i = 0; i < count; ++i) {
    const auto& [kernel, args] = calls[i];
    if (kernel == nullptr || kernel->run.linear == nullptr)
      return Status::invalid("grouped_linear: group " + std::to_string(i) + " has no linear kernel");
    if (Status status = validate(args, kernel->numerics); !status.ok())
      return {status.code(), "group " + std::to_string(i) + ": " + status.message()};
    ends[i] = total += cost_of(calls[i]);
    on_cpu = on_cpu && kernel->device == Device::cpu;
  }
  if (!on_cpu || count == 1 || total < kSerialUs) {
    for (std::size_t i = 0; i < count; ++i)
      if (Status status = calls[i].kernel->run.linear(calls[i].args); !status.ok()) return status;
    return {};
  }
  const int workers = threads();
  std::vector<Status> statuses(static_cast<std::size_t>(workers));
  parallel_region(workers, [&](int thread, int used) {
    // The last share ends at total itself: total * used / used may round below it, and rows would be left out.
    const double from = total * thread / used, to = thread + 1 == used ? total : total * (thread + 1) / used;
    for (std::size_t i = 0; i < count; ++i) {
      const double start = i == 0 ? 0 : ends[i - 1], cost = ends[i] - start;
      if (ends[i] <= from || start >= to) continue;
      const std::int64_t rows = calls[i].args.x.rows;
      const Range mine = {cut(rows, (from - start) / cost), cut(rows, (to - start) / cost)};
      if (mine.begin >= mine.end) continue;
      Status status = calls[i].kernel->run.linear(rows_of(calls[i].args, mine));
      if (!status.ok() && statuses[static_cast<std::size_t>(thread)].ok())
        statuses[static_cast<std::size_t>(thread)] = std::move(status);
    }
  });
  for (Status& status : statuses)
    if (!status.ok()) return std::move(status);
  return {};
}

}  // namespace octavo
