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

// Whether `vector` lies `distance` bytes behind `first`; neither, where a layer has none.
bool is_behind(const void* first, const void* vector, std::int64_t distance) {
  if (first == nullptr || vector == nullptr) return first == vector;
  return static_cast<const char*>(vector) == static_cast<const char*>(first) + distance;
}

// Elements from `first` to `other`, which has the same shape, type and rows; 0 where it has not, or is not behind it.
std::int64_t distance_between(const MatrixView& first, const MatrixView& other) {
  if (first.rows != other.rows || first.cols != other.cols || first.dtype != other.dtype ||
      (first.rows > 1 && first.row_stride != other.row_stride))
    return 0;
  const auto from = reinterpret_cast<std::uintptr_t>(first.data), to = reinterpret_cast<std::uintptr_t>(other.data);
  const std::uintptr_t element = size_of(first.dtype);
  return to > from && (to - from) % element == 0 ? static_cast<std::int64_t>((to - from) / element) : 0;
}

// Whether `count` matrices so far apart share no element: they lie behind each other, or in each other's rows.
bool are_apart(const MatrixView& first, std::int64_t distance, std::int64_t count) {
  if (distance >= (first.rows - 1) * first.row_stride + first.cols) return true;
  return distance >= first.cols && (count - 1) * distance + first.cols <= first.row_stride;
}

bool may_be_in_a_batch(const GroupedLinear& call) {
  const LinearArgs& a = call.args;
  return call.kernel->run.linear_batch != nullptr && a.weight->scaling() == Scaling::row && a.x_scale == nullptr &&
         a.y_scale == nullptr && a.epilogue.residual.data == nullptr && a.epilogue.saved.data == nullptr;
}

// Whether `call` is the layer `at` places behind `first` as far as weights and epilogue go.
bool continues(const GroupedLinear& first, const GroupedLinear& call, std::int64_t at) {
  const PackedWeight &w = *first.args.weight, &v = *call.args.weight;
  const Epilogue &e = first.args.epilogue, &f = call.args.epilogue;
  const std::int64_t vector = at * w.n() * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t codes = at * w.n() * w.k() * static_cast<std::int64_t>(size_of(w.format()));
  return call.kernel == first.kernel && may_be_in_a_batch(call) && call.args.stream == first.args.stream &&
         w.n() == v.n() && w.k() == v.k() && w.format() == v.format() && is_behind(w.codes(), v.codes(), codes) &&
         is_behind(w.scale(), v.scale(), vector) && is_behind(e.bias, f.bias, vector) && e.norm == f.norm &&
         is_behind(e.norm_weight, f.norm_weight, vector) && is_behind(e.norm_bias, f.norm_bias, vector) &&
         e.eps == f.eps && e.norm_block == f.norm_block && e.activation == f.activation;
}

}  // namespace

bool may_overlap(const MatrixView& a, std::int64_t a_distance, const MatrixView& b, std::int64_t b_distance,
                 std::int64_t count) {
  const auto begin = [](const MatrixView& m) { return reinterpret_cast<std::uintptr_t>(m.data); };
  const auto bytes = [](const MatrixView& m, std::int64_t elements) {
    return static_cast<std::uintptr_t>(elements) * size_of(m.dtype);
  };
  const auto end = [&](const MatrixView& m, std::int64_t distance) {
    return begin(m) + bytes(m, (count - 1) * distance + (m.rows - 1) * m.row_stride + m.cols);
  };
  if (begin(a) >= end(b, b_distance) || begin(b) >= end(a, a_distance)) return false;
  const std::uintptr_t pitch = bytes(a, a.row_stride);
  if (count > 1 || pitch == 0 || pitch != bytes(b, b.row_stride)) return true;
  const std::uintptr_t first = std::min(begin(a), begin(b));
  const std::uintptr_t at_a = (begin(a) - first) % pitch, at_b = (begin(b) - first) % pitch;
  const std::uintptr_t end_a = at_a + bytes(a, a.cols), end_b = at_b + bytes(b, b.cols);
  return (at_a < end_b && at_b < end_a) || end_a > pitch || end_b > pitch;
}

LinearBatch batch_of(const GroupedLinear* calls, std::size_t count) {
  constexpr std::int64_t kLargest = 0x7fffffff, kMost = 65535;  // of rows and columns together; of a grid's y
  LinearBatch batch;
  const GroupedLinear& first = calls[0];
  const MatrixView &x = first.args.x, &y = first.args.y;
  if (count == 1 || !may_be_in_a_batch(first)) return batch;
  const std::int64_t x_distance = distance_between(x, calls[1].args.x),
                     y_distance = distance_between(y, calls[1].args.y);
  if (x_distance == 0 || y_distance == 0) return batch;
  const std::int64_t most =
      std::min({static_cast<std::int64_t>(count), kMost, kLargest / std::max({y.rows, y.cols, std::int64_t{1}})});
  while (batch.count < most) {
    const GroupedLinear& next = calls[batch.count];
    if (!continues(first, next, batch.count) || distance_between(x, next.args.x) != batch.count * x_distance ||
        distance_between(y, next.args.y) != batch.count * y_distance || !are_apart(y, y_distance, batch.count + 1) ||
        may_overlap(x, x_distance, y, y_distance, batch.count + 1))  // all are read and written at once
      break;
    ++batch.count;
  }
  if (batch.count > 1) batch.x = x_distance, batch.y = y_distance;
  return batch;
}

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
    for (std::size_t i = 0; i < count;) {
      const LinearBatch batch = batch_of(calls + i, count - i);
      const auto& [kernel, args] = calls[i];
      Status status = batch.count > 1 ? kernel->run.linear_batch(args, batch) : kernel->run.linear(args);
      if (!status.ok()) return status;
      i += static_cast<std::size_t>(batch.count);
    }
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
