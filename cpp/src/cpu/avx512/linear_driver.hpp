// Blocking and threads of the hand-written linear kernels: rows are cut into blocks whose FP32 results stay in L2, and
// every block is finished (norm, activation, residual) before the next one starts.
#pragma once

#include "cpu/avx512/linear_tile.hpp"
#include "cpu/generic/linear_epilogue.hpp"
#include "octavo/memory.hpp"
#include "octavo/threading.hpp"

namespace octavo::avx512_kernels {
namespace {

constexpr std::int64_t kBlockDepth = 1024;   // K of one pass: a BF16 panel is then 128 KiB
constexpr std::int64_t kSerialMacs = 60000;  // a fork costs more than this much work

inline std::int64_t round_up(std::int64_t value, std::int64_t unit) { return (value + unit - 1) / unit * unit; }
inline std::size_t to_bytes(std::int64_t count) { return static_cast<std::size_t>(count); }
inline const char* row_of(const MatrixView& x, std::int64_t row) {
  return static_cast<const char*>(x.data) + row * x.row_stride * static_cast<std::int64_t>(size_of(x.dtype));
}

// Activations of some rows, rounded as the class says.
struct RoundedRows {
  const char* data;
  std::int64_t stride;  // bytes
};

// A class of kernels offers
//   kGroup, kElementBytes     K elements and bytes per element of a dot instruction's group in the activations
//   kBlockRows                rows per block
//   kCutColumnsBelow          with fewer rows than this, threads share the columns, not the rows
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
    if (count > 1 && m < Class::kCutColumnsBelow) {
      block(0, m, panels_ < count ? static_cast<int>(panels_) : count);
      return;
    }
    const std::int64_t grain = m >= 64 * count ? 6 : 1;
    parallel_region(count, [&](int thread, int used) {
      const Range rows = partition(m, thread, used, grain);
      for (std::int64_t first = rows.begin; first < rows.end; first += Class::kBlockRows)
        block(first, rows.end - first < Class::kBlockRows ? rows.end - first : Class::kBlockRows, 1);
    });
  }

 private:
  void block(std::int64_t first, std::int64_t count, int workers) {
    const std::int64_t row_bytes = round_up(k_ * Class::kElementBytes, 64);
    void* buffer = scratch(0, to_bytes(count * row_bytes + 64));
    float* c = static_cast<float*>(scratch(1, to_bytes(count * panels_ * kPanel) * sizeof(float)));
    float* scale = static_cast<float*>(scratch(2, to_bytes(count) * sizeof(float)));
    const RoundedRows rows = kernel_.round(args_, first, count, buffer, scale);
    parallel_region(workers, [&](int thread, int used) {
      const Range panels = partition(panels_, thread, used);
      std::int64_t begin = 0;
      do {  // once for K = 0: the product is zero
        const std::int64_t end = k_ - begin < kBlockDepth ? k_ : begin + kBlockDepth;
        for (std::int64_t p = panels.begin; p < panels.end; ++p)
          kernel_.multiply(tile(rows, c, scale, p, begin, end), count, p, begin, k_);
        begin = end;
      } while (begin < k_);
    });
    avx512::finish_rows(c, panels_ * kPanel, first, count, args_.epilogue, args_.y, args_.y_scale);
  }

  Tile tile(const RoundedRows& rows, float* c, const float* scale, std::int64_t panel, std::int64_t begin,
            std::int64_t end) const {
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
    return t;
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
}  // namespace octavo::avx512_kernels
