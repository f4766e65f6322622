// A batch into mean and scatter: centred columns, their products in FP32 over at most kChunk rows, sums in FP64.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/generic/linear_vector.hpp"
#include "octavo/memory.hpp"
#include "octavo/threading.hpp"
#include "statistics/rows.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

constexpr int kVectors = 2, kPanel = kVectors * kLanes;  // columns side by side
constexpr int kTile = kLanes == 16 ? 8 : 4;              // sums stay in registers; divides kPanel
constexpr std::int64_t kChunk = 512;                     // rows whose products are summed in FP32
constexpr std::int64_t kSerialMacs = 200000;             // a fork costs more

using Columns = std::vector<double>;

std::int64_t panels_of(std::int64_t columns) { return (columns + kPanel - 1) / kPanel; }
std::size_t floats(std::int64_t count) { return static_cast<std::size_t>(count) * sizeof(float); }

// out [kTile, kPanel] = sum over d of a[i * a_column + d * a_step] * b[d, kPanel]
[[gnu::noinline]] void multiply(const float* a, std::int64_t a_column, std::int64_t a_step, const float* b,
                                std::int64_t depth, float* out) {
  Vec sums[kTile][kVectors] = {};
  for (std::int64_t d = 0; d < depth; ++d) {
    Vec right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) right[v] = load(b + d * kPanel + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[i][v] += a[i * a_column + d * a_step] * right[v];
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store(out + i * kPanel + v * kLanes, sums[i][v]);
}

Columns means_of(const FiniteRows& rows) {
  Columns mean(static_cast<std::size_t>(rows.k));
  double* sums = mean.data();
  for (std::int64_t r = 0; r < rows.count; ++r) {
    const float* row = rows.data + r * rows.k;
    for (std::int64_t c = 0; c < rows.k; ++c) sums[c] += static_cast<double>(row[c]);
  }
  for (std::int64_t c = 0; c < rows.k; ++c) sums[c] /= static_cast<double>(rows.count);
  return mean;
}

// Powers of two that bring each column's largest deviation near 1: its squares neither overflow nor vanish.
Columns units_of(const FiniteRows& rows, const Columns& mean) {
  Columns unit(static_cast<std::size_t>(rows.k));
  double* largest = unit.data();
  for (std::int64_t r = 0; r < rows.count; ++r) {
    const float* row = rows.data + r * rows.k;
    for (std::int64_t c = 0; c < rows.k; ++c) {
      const double d = std::abs(static_cast<double>(row[c]) - mean[static_cast<std::size_t>(c)]);
      largest[c] = d > largest[c] ? d : largest[c];
    }
  }
  for (double& u : unit) u = u > 0 ? std::ldexp(1.0, std::ilogb(u)) : 1.0;
  return unit;
}

// Rows [from, from + count) centred, in units, as panels [K / kPanel][count][kPanel]; zero beyond K.
void centre(const FiniteRows& rows, std::int64_t from, std::int64_t count, const Columns& mean, const Columns& unit,
            float* panels) {
  for (std::int64_t p = 0; p < panels_of(rows.k); ++p) {
    const std::int64_t first = p * kPanel, width = std::min<std::int64_t>(kPanel, rows.k - first);
    double centre[kPanel] = {}, inverse[kPanel] = {};
    for (std::int64_t c = 0; c < width; ++c) {
      centre[c] = mean[static_cast<std::size_t>(first + c)];
      inverse[c] = 1 / unit[static_cast<std::size_t>(first + c)];
    }
    for (std::int64_t r = 0; r < count; ++r, panels += kPanel) {
      const float* row = rows.data + (from + r) * rows.k + first;
      for (std::int64_t c = 0; c < width; ++c)
        panels[c] = static_cast<float>((static_cast<double>(row[c]) - centre[c]) * inverse[c]);
      for (std::int64_t c = width; c < kPanel; ++c) panels[c] = 0;
    }
  }
}

struct Batch {
  const Moments& moments;
  const Columns& unit;
  const Columns& difference;
  double weight;  // of difference difference^T; 0 but for the first chunk
};

// The tiles of rows of panel p: S[i, j] += products * units + weight * difference_i * difference_j.
void add_scatter(const Batch& batch, const float* panels, std::int64_t count, std::int64_t p) {
  const std::int64_t k = batch.moments.k, all = panels_of(k);
  alignas(64) float tile[kTile * kPanel];
  for (std::int64_t q = p; q < all; ++q)
    for (int t = 0; t < kPanel; t += kTile) {
      if (p * kPanel + t >= k) break;
      multiply(panels + p * count * kPanel + t, 1, kPanel, panels + q * count * kPanel, count, tile);
      for (int i = 0; i < kTile && p * kPanel + t + i < k; ++i) {
        const std::int64_t row = p * kPanel + t + i, first = q * kPanel;
        const std::int64_t width = std::min<std::int64_t>(kPanel, k - first);
        const double scale = batch.unit[static_cast<std::size_t>(row)];
        const double lift = batch.weight * batch.difference[static_cast<std::size_t>(row)];
        double* out = batch.moments.scatter + row * k + first;
        const double *unit = batch.unit.data() + first, *difference = batch.difference.data() + first;
        for (std::int64_t c = 0; c < width; ++c)
          out[c] += static_cast<double>(tile[i * kPanel + c]) * scale * unit[c] + lift * difference[c];
      }
    }
}

void add_full(const Batch& batch, const float* panels, std::int64_t count) {
  const std::int64_t k = batch.moments.k, all = panels_of(k);
  const int of = k * k * (count + 8) < kSerialMacs ? 1 : threads();
  // Panel p has all - p tiles beside it: threads take p and its opposite, so that all have about as many.
  parallel_region(of, [&](int thread, int n) {
    for (std::int64_t p = 0; p < all; ++p) {
      const std::int64_t turn = p < (all + 1) / 2 ? p : all - 1 - p;
      if (turn % n == thread) add_scatter(batch, panels, count, p);
    }
  });
}

// The sketch: products = C signs [count, rank], then scatter += C^T products.
void add_sketch(const Batch& batch, const float* panels, std::int64_t count) {
  const std::int64_t k = batch.moments.k, rank = batch.moments.rank, right = panels_of(rank), left = panels_of(k);
  const std::int64_t padded = (count + kTile - 1) / kTile * kTile;
  auto* signs = static_cast<float*>(scratch(kSignsSlot, floats(k * rank + k * right * kPanel)));
  float* sign_panels = signs + k * rank;
  sketch_signs(k, rank, signs);
  for (std::int64_t q = 0; q < right; ++q)
    for (std::int64_t i = 0; i < k; ++i)
      for (int c = 0; c < kPanel; ++c)
        sign_panels[(q * k + i) * kPanel + c] = q * kPanel + c < rank ? signs[i * rank + q * kPanel + c] : 0.0f;
  auto* products = static_cast<float*>(scratch(kProductsSlot, floats(right * padded * kPanel)));
  const int of = k * rank * count < kSerialMacs ? 1 : threads();
  parallel_region(of, [&](int thread, int n) {
    alignas(64) float tile[kTile * kPanel], sums[kTile * kPanel];
    const auto [begin, end] = partition(padded, thread, n, kTile);
    for (std::int64_t r = begin; r < end; r += kTile)
      for (std::int64_t q = 0; q < right; ++q) {
        std::fill(sums, sums + kTile * kPanel, 0.0f);
        const std::int64_t tall = std::min<std::int64_t>(kTile, count - r);
        for (std::int64_t p = 0; p < left; ++p) {
          const std::int64_t depth = std::min<std::int64_t>(kPanel, k - p * kPanel);
          const float* rows = panels + (p * count + r) * kPanel;
          // Rows beyond the last are read as the last one and dropped.
          if (tall == kTile) {
            multiply(rows, kPanel, 1, sign_panels + (q * k + p * kPanel) * kPanel, depth, tile);
          } else {
            alignas(64) float part[kTile * kPanel] = {};
            std::copy(rows, rows + tall * kPanel, part);
            multiply(part, kPanel, 1, sign_panels + (q * k + p * kPanel) * kPanel, depth, tile);
          }
          for (int e = 0; e < kTile * kPanel; ++e) sums[e] += tile[e];
        }
        std::copy(sums, sums + kTile * kPanel, products + (q * padded + r) * kPanel);
      }
  });
  Columns lift(static_cast<std::size_t>(rank));
  if (batch.weight > 0)
    for (std::int64_t i = 0; i < k; ++i)
      for (std::int64_t c = 0; c < rank; ++c)
        lift[static_cast<std::size_t>(c)] +=
            batch.weight * batch.difference[static_cast<std::size_t>(i)] * static_cast<double>(signs[i * rank + c]);
  const double square = batch.unit[0] * batch.unit[0];  // one unit for all columns
  parallel_region(of, [&](int thread, int n) {
    alignas(64) float tile[kTile * kPanel];
    const auto [begin, end] = partition(k, thread, n, kPanel);
    for (std::int64_t first = begin; first < end; first += kTile)
      for (std::int64_t q = 0; q < right; ++q) {
        const std::int64_t p = first / kPanel, t = first % kPanel;
        multiply(panels + p * count * kPanel + t, 1, kPanel, products + q * padded * kPanel, count, tile);
        for (std::int64_t i = first; i < std::min(first + kTile, end); ++i)
          for (std::int64_t c = q * kPanel; c < std::min<std::int64_t>(rank, (q + 1) * kPanel); ++c)
            batch.moments.scatter[i * rank + c] +=
                static_cast<double>(tile[(i - first) * kPanel + c - q * kPanel]) * square +
                batch.difference[static_cast<std::size_t>(i)] * lift[static_cast<std::size_t>(c)];
      }
  });
  for (std::int64_t i = 0; i < k; ++i) {
    const float* column = panels + i / kPanel * count * kPanel + i % kPanel;
    double sum = 0;
    for (std::int64_t r = 0; r < count; ++r) {
      const double d = static_cast<double>(column[r * kPanel]);
      sum += d * d;
    }
    const double d = batch.difference[static_cast<std::size_t>(i)];
    batch.moments.diagonal[i] += sum * square + batch.weight * d * d;
  }
}

}  // namespace

void add_moments(const MomentsArgs& args) {
  const FiniteRows& rows = args.rows;
  const Moments& moments = args.moments;
  const BatchWeight weight(moments.counts[kRows], rows.count);
  const Columns mean = means_of(rows);
  Columns unit = units_of(rows, mean), difference = mean;
  for (std::int64_t c = 0; c < rows.k; ++c) {
    difference[static_cast<std::size_t>(c)] -= moments.mean[c];
    moments.mean[c] += weight.share * difference[static_cast<std::size_t>(c)];
  }
  moments.counts[kRows] += rows.count;
  if (rows.k == 0) return;
  if (moments.rank > 0) std::fill(unit.begin(), unit.end(), *std::max_element(unit.begin(), unit.end()));
  const std::int64_t longest = std::min(kChunk, rows.count);
  auto* panels = static_cast<float*>(scratch(kPanelsSlot, floats(panels_of(rows.k) * longest * kPanel)));
  for (std::int64_t from = 0; from < rows.count; from += kChunk) {
    const std::int64_t count = std::min(kChunk, rows.count - from);
    centre(rows, from, count, mean, unit, panels);
    const Batch batch{moments, unit, difference, from == 0 ? weight.weight : 0};
    moments.rank == 0 ? add_full(batch, panels, count) : add_sketch(batch, panels, count);
  }
}

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
