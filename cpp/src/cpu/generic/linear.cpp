// Every numerics class on FP32 units: E4M3, BF16 and INT8 operands are exact in FP32, so one matrix product serves all.
// Weights are kept as BF16 (exact for E4M3 and for INT8 codes); INT8 sums stay exact integers. Scales of blocks
// multiply the sums of their 128 of K.
#include "octavo/linear.hpp"

#include "cpu/generic/linear_epilogue.hpp"
#include "cpu/generic/linear_panels.hpp"
#include "cpu/generic/linear_rows.hpp"
#include "octavo/float8.hpp"
#include "octavo/threading.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kBlockRows = 48;     // rows whose FP32 results stay in L2
constexpr std::int64_t kBlockDepth = 1024;  // K of one pass: 1024 * 127^2 < 2^24 is exact

std::uint16_t weight_as_bf16(const PackedWeight& w, std::int64_t index) {
  switch (w.format()) {
    case DType::bf16: return static_cast<const std::uint16_t*>(w.codes())[index];
    case DType::e4m3: return encode_bf16(decode_e4m3(static_cast<const std::uint8_t*>(w.codes())[index]));
    default: return encode_bf16(static_cast<float>(static_cast<const std::int8_t*>(w.codes())[index]));
  }
}

// [panel][K][kPanel] BF16; columns beyond N are zero.
void pack_panels(const PackedWeight& w, void* out) {
  auto* packed = static_cast<std::uint16_t*>(out);
  const std::int64_t n = w.n(), k = w.k();
  for (std::int64_t column = 0; column < panels_of(n) * kPanel; ++column) {
    std::uint16_t* to = packed + column / kPanel * kPanel * k + column % kPanel;
    for (std::int64_t i = 0; i < k; ++i) to[i * kPanel] = column < n ? weight_as_bf16(w, column * k + i) : 0;
  }
}

// Rows [first, first + count) of x W^T before scaling: rounding x, then the product, in passes over K.
struct Product {
  const LinearArgs& args;
  Numerics numerics;
  const std::uint16_t* panels;
  std::int64_t stride;  // of the FP32 results: N rounded up to whole panels

  bool has_blocks() const { return numerics == Numerics::e4m3_block; }

  void round(std::int64_t first, std::int64_t count, std::int64_t begin, std::int64_t end, const float* multiplier,
             float* a) const {
    for (std::int64_t r = 0; r < count;) {
      const int height = micro_height(count - r);
      round_rows(args.x, first + r, height, begin, end, multiplier + r, numerics, a + r * (end - begin));
      r += height;
    }
  }

  void multiply_panels(Range columns, std::int64_t count, std::int64_t begin, std::int64_t end, const float* a,
                       float* c, bool add) const {
    const std::int64_t k = args.x.cols, depth = end - begin;
    for (std::int64_t p = columns.begin; p < columns.end; ++p) {
      const std::uint16_t* w = panels + (p * k + begin) * kPanel;
      for (std::int64_t r = 0; r < count;) {
        const int height = micro_height(count - r);
        multiply(height, a + r * depth, w, depth, c + r * stride + p * kPanel, stride, add);
        r += height;
      }
    }
  }
};

// c = c * row scale * column scale + bias; sums of blocks are scaled already.
void scale_rows(const LinearArgs& args, const float* row_scale, std::int64_t count, float* c, std::int64_t stride) {
  const std::int64_t n = args.y.cols;
  const bool by_rows = args.weight->scaling() == Scaling::row;
  const float *column_scale = by_rows ? args.weight->scale() : nullptr, *bias = args.epilogue.bias;
  for (std::int64_t r = 0; r < count; ++r) {
    float* row = c + r * stride;
    if (column_scale != nullptr)
      for (std::int64_t j = 0; j < n; ++j) row[j] *= row_scale[r] * column_scale[j];
    if (bias != nullptr)
      for (std::int64_t j = 0; j < n; ++j) row[j] += bias[j];
  }
}

struct Scratch {
  float *a, *c, *row_scale, *multiplier;
  double* sums;  // over several passes, where FP32 would round INT8's, and where each pass has scales of its own

  Scratch(std::int64_t rows, std::int64_t k, std::int64_t stride, bool sums_apart) {
    const auto bytes = [](std::int64_t count, std::size_t size) { return static_cast<std::size_t>(count) * size; };
    const std::int64_t depth = k < kBlockDepth ? k : kBlockDepth;
    a = static_cast<float*>(scratch(0, bytes(rows * depth, sizeof(float)) + 64));
    c = static_cast<float*>(scratch(1, bytes(rows * stride, sizeof(float))));
    row_scale = static_cast<float*>(scratch(2, bytes(2 * rows, sizeof(float))));
    multiplier = row_scale + rows;
    sums = sums_apart ? static_cast<double*>(scratch(3, bytes(rows * stride, sizeof(double)))) : nullptr;
  }
};

// Scales of x's columns [begin, end) of `count` rows, which share one in each row.
void scale_columns(const Product& product, const Scratch& s, std::int64_t first, std::int64_t count, std::int64_t begin,
                   std::int64_t end) {
  const LinearArgs& args = product.args;
  const std::int64_t per_row = product.has_blocks() ? scale_blocks(args.x.cols) : 1;
  for (std::int64_t r = 0; r < count; ++r) {
    const char* row = static_cast<const char*>(args.x.data) +
                      static_cast<std::size_t>((first + r) * args.x.row_stride + begin) * size_of(args.x.dtype);
    const ScalePair pair = args.x_scale != nullptr
                               ? ScalePair{args.x_scale[(first + r) * per_row + begin / kScaleBlock], 1.0f}
                               : activation_scale(row, end - begin, args.x.dtype, product.numerics);
    s.row_scale[r] = pair.scale;
    s.multiplier[r] = pair.multiplier;
  }
}

// sums += c, the sums of K's columns from `begin`, times the scales of their blocks where the class has them.
void add_pass(const Product& product, const Scratch& s, std::int64_t count, std::int64_t begin) {
  const std::int64_t n = product.args.y.cols;
  for (std::int64_t r = 0; r < count; ++r) {
    const float* c = s.c + r * product.stride;
    double* sums = s.sums + r * product.stride;
    for (std::int64_t left = 0; left < n; left += kScaleBlock) {
      const double scale = product.has_blocks() ? s.row_scale[r] * product.args.weight->scale_at(left, begin) : 1.0f;
      const std::int64_t right = n - left < kScaleBlock ? n : left + kScaleBlock;
      for (std::int64_t j = left; j < right; ++j) sums[j] += static_cast<double>(c[j]) * scale;
    }
  }
}

// c = rounded x W^T of `count` rows, the panels cut over `workers` threads.
void multiply_rows(const Product& product, const Scratch& s, std::int64_t first, std::int64_t count, int workers) {
  const LinearArgs& args = product.args;
  const std::int64_t k = args.x.cols, cells = count * product.stride;
  const std::int64_t depth = product.has_blocks() ? kScaleBlock : kBlockDepth;
  if (s.sums != nullptr)
    for (std::int64_t i = 0; i < cells; ++i) s.sums[i] = 0.0;
  std::int64_t begin = 0;
  do {  // once for K = 0: the product is zero
    const std::int64_t end = k - begin < depth ? k : begin + depth;
    if (product.has_blocks() || begin == 0)
      scale_columns(product, s, first, count, begin, product.has_blocks() ? end : k);
    product.round(first, count, begin, end, s.multiplier, s.a);
    parallel_region(workers, [&](int thread, int threads_used) {
      const Range columns = partition(panels_of(args.y.cols), thread, threads_used);
      product.multiply_panels(columns, count, begin, end, s.a, s.c, begin > 0 && s.sums == nullptr);
    });
    if (s.sums != nullptr) add_pass(product, s, count, begin);
    begin = end;
  } while (begin < k);
  if (s.sums != nullptr)
    for (std::int64_t i = 0; i < cells; ++i) s.c[i] = static_cast<float>(s.sums[i]);
}

void linear(const LinearArgs& args, Numerics numerics) {
  const std::int64_t m = args.y.rows, n = args.y.cols, k = args.x.cols;
  if (m == 0 || n == 0) return;
  static const char layout_tag = 0;
  const std::size_t bytes = static_cast<std::size_t>(panels_of(n) * kPanel * k) * sizeof(std::uint16_t);
  const void* panels = args.weight->layout(&layout_tag, bytes, pack_panels);
  const Product product{args, numerics, static_cast<const std::uint16_t*>(panels), panels_of(n) * kPanel};
  const bool sums_apart = (numerics == Numerics::int8_dynamic && k > kBlockDepth) || (product.has_blocks() && k > 0);

  const auto run_rows = [&](std::int64_t begin, std::int64_t end, int workers) {
    for (std::int64_t first = begin; first < end; first += kBlockRows) {
      const std::int64_t count = end - first < kBlockRows ? end - first : kBlockRows;
      const Scratch s(count, k, product.stride, sums_apart);
      multiply_rows(product, s, first, count, workers);
      scale_rows(args, s.row_scale, count, s.c, product.stride);
      finish_rows(s.c, product.stride, first, count, args.epilogue, args.y, args.y_scale);
    }
  };
  const int count = m * n < kSerialMacs && m * n * k < kSerialMacs ? 1 : threads();
  if (m < 2 * kMicroRows) {  // too few rows to cut: cut the columns
    run_rows(0, m, panels_of(n) < count ? static_cast<int>(panels_of(n)) : count);
    return;
  }
  parallel_region(count, [&](int thread, int threads_used) {
    const Range rows = partition(m, thread, threads_used, kMicroRows);
    run_rows(rows.begin, rows.end, 1);
  });
}

}  // namespace

void linear_bf16(const LinearArgs& args) { linear(args, Numerics::bf16); }
void linear_e4m3_row(const LinearArgs& args) { linear(args, Numerics::e4m3_row); }
void linear_e4m3_block(const LinearArgs& args) { linear(args, Numerics::e4m3_block); }
void linear_e4m3_weight_only(const LinearArgs& args) { linear(args, Numerics::e4m3_weight_only); }
void linear_int8_dynamic(const LinearArgs& args) { linear(args, Numerics::int8_dynamic); }

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
