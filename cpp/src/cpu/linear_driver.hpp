// Blocking and threads of the hand-written linear kernels: rows are cut into blocks whose FP32 results stay in L2, and
// every block is finished (norm, activation, residual) before the next one starts.
#pragma once

#include "cpu/generic/linear_epilogue.hpp"
#include "octavo/isa.hpp"
#include "octavo/memory.hpp"
#include "octavo/threading.hpp"

namespace octavo {
namespace {

constexpr std::int64_t kBlockDepth = 1024;    // K of one pass: a BF16 panel is then 128 KiB
constexpr std::int64_t kSerialMacs = 60000;   // a fork costs more than this much work
constexpr std::int64_t kForkElements = 4096;  // or than rounding or finishing so many numbers

inline std::int64_t round_up(std::int64_t value, std::int64_t unit) { return (value + unit - 1) / unit * unit; }
inline std::size_t to_bytes(std::int64_t count) { return static_cast<std::size_t>(count); }
inline const char* row_of(const MatrixView& x, std::int64_t row) {
  return static_cast<const char*>(x.data) + row * x.row_stride * static_cast<std::int64_t>(size_of(x.dtype));
}

// One pass over K of one panel and some rows.
struct Tile {
  const char* a;  // rounded activations, `a_stride` bytes between rows
  std::int64_t a_stride;
  const char* weights;  // the panel, from this pass's first group on
  std::int64_t groups;
  float* c;  // sums of earlier passes in (unless `first`), results out (when `last`: scaled, FP32)
  std::int64_t c_stride;
  bool first, last;
  const float* row_scale;     // [rows]
  const float* column_scale;  // of the panel's first column; null: 1
  const float* bias;          // of the panel's first column; null: 0
  std::int64_t columns;       // of the panel that exist, at least 1
  const std::int32_t* start;  // VNNI: first value of each column's sum
  bool more_panels;           // this thread has a panel to the right of this one
  const char* ahead;          // weights that will be wanted next, up to `ahead_end`
  const char* ahead_end;
};

// Activations of some rows, rounded as the class says.
struct RoundedRows {
  const char* data;
  std::int64_t stride;  // bytes
};

// A class of kernels offers
//   kColumns                  columns of a panel
//   kGroup, kElementBytes     K elements and bytes per element of a dot instruction's group in the activations
//   kBlockRows, kRowGrain     rows per block; threads get multiples of the grain where there are many
//   kCutColumnsBelow          with fewer rows than this, threads share the columns, if there is a panel each
//   round(args, first, count, buffer, scale) -> RoundedRows
//   multiply(tile, rows, panel, begin, k)    one panel of one pass over K; fills in what of the tile is its own
template <class Class>
class Linear {
 public:
  Linear(const LinearArgs& args, Class& kernel)
      : args_(args), kernel_(kernel), n_(args.y.cols), k_(args.x.cols), panels_((n_ + kPanel - 1) / kPanel) {}

  void run() {
    const std::int64_t m = args_.y.rows;
    const int count = m * n_ < kSerialMacs && m * n_ * k_ < kSerialMacs ? 1 : threads();
    if (count > 1 && m < Class::kCutColumnsBelow && (panels_ >= count || m == 1)) {
      block(0, m, panels_ < count ? static_cast<int>(panels_) : count);
      return;
    }
    const std::int64_t grain = m >= 64 * count ? Class::kRowGrain : 1;
    parallel_region(count, [&](int thread, int used) {
      const Range rows = partition(m, thread, used, grain);
      for (std::int64_t first = rows.begin; first < rows.end; first += Class::kBlockRows)
        block(first, rows.end - first < Class::kBlockRows ? rows.end - first : Class::kBlockRows, 1);
    });
  }

 private:
  static constexpr std::int64_t kPanel = Class::kColumns;

  void block(std::int64_t first, std::int64_t count, int workers) {
    const std::int64_t row_bytes = round_up(k_ * Class::kElementBytes, 64);
    void* buffer = scratch(0, to_bytes(count * row_bytes + 64));
    float* c = static_cast<float*>(scratch(1, to_bytes(count * panels_ * kPanel) * sizeof(float)));
    float* scale = static_cast<float*>(scratch(2, to_bytes(count) * sizeof(float)));
    RoundedRows rows{};
    over_rows(count, k_, workers, [&](std::int64_t begin, std::int64_t end) {
      const RoundedRows part = kernel_.round(args_, first + begin, end - begin,
                                             static_cast<char*>(buffer) + begin * row_bytes, scale + begin);
      if (begin == 0) rows = part;
    });
    parallel_region(workers, [&](int thread, int used) {
      const Range panels = partition(panels_, thread, used);
      std::int64_t begin = 0;
      do {  // once for K = 0: the product is zero
        const std::int64_t end = k_ - begin < kBlockDepth ? k_ : begin + kBlockDepth;
        for (std::int64_t p = panels.begin; p < panels.end; ++p)
          multiply(rows, c, scale, p, begin, end, p + 1 < panels.end, count);
        begin = end;
      } while (begin < k_);
    });
    const auto finish_rows = cpu_features().avx512_bf16 ? avx512_bf16::finish_rows
                             : cpu_features().avx512    ? avx512::finish_rows
                                                        : avx2::finish_rows;
    over_rows(count, n_, workers, [&](std::int64_t begin, std::int64_t end) {
      finish_rows(c + begin * panels_ * kPanel, panels_ * kPanel, first + begin, end - begin, args_.epilogue, args_.y,
                  args_.y_scale);
    });
  }

  // body(begin, end) over rows [0, count) of `columns` each, on several threads where that pays.
  template <class Body>
  static void over_rows(std::int64_t count, std::int64_t columns, int workers, Body&& body) {
    if (workers == 1 || count * columns < kForkElements) return body(0, count);
    parallel_region(workers, [&](int thread, int used) {
      const Range rows = partition(count, thread, used);
      if (rows.begin < rows.end) body(rows.begin, rows.end);
    });
  }

  [[gnu::noinline]] void multiply(const RoundedRows& rows, float* c, const float* scale, std::int64_t panel,
                                  std::int64_t begin, std::int64_t end, bool more_panels, std::int64_t count) const {
    Tile t{};
    const std::int64_t column = panel * kPanel;
    t.a = rows.data + begin * Class::kElementBytes;
    t.a_stride = rows.stride;
    t.groups = (end - begin + Class::kGroup - 1) / Class::kGroup;
    t.c = c + column;
    t.c_stride = panels_ * kPanel;
    t.first = begin == 0;
    t.last = end == k_;
    t.row_scale = scale;
    t.column_scale = args_.weight->scale() == nullptr ? nullptr : args_.weight->scale() + column;
    t.bias = args_.epilogue.bias == nullptr ? nullptr : args_.epilogue.bias + column;
    t.columns = n_ - column < kPanel ? n_ - column : kPanel;
    t.more_panels = more_panels;
    kernel_.multiply(t, count, panel, begin, k_);
  }

  const LinearArgs& args_;
  Class& kernel_;
  const std::int64_t n_, k_, panels_;
};

template <class Class>
void run_linear(const LinearArgs& args) {
  if (args.y.rows == 0 || args.y.cols == 0) return;
  Class kernel(*args.weight);
  Linear<Class>(args, kernel).run();
}

}  // namespace
}  // namespace octavo
