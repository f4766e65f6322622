// x and W in BF16, FP32 sums, on panels of pairs.
#pragma once

#include "cpu/avx512/linear_bf16_class.hpp"
#include "cpu/avx512/panel_packing.hpp"

namespace octavo::avx512_kernels {
namespace {

template <class Product>
struct Bf16Class {
  static constexpr std::int64_t kColumns = kPanel, kGroup = 2, kElementBytes = 2, kBlockRows = Product::kBlockRows,
                                kRowGrain = Product::kRowGrain, kCutColumnsBelow = Product::kThreadRows;

  explicit Bf16Class(const PackedWeight& w) {
    static const char tag = 0;
    panels = static_cast<const char*>(w.layout(&tag, to_bytes(panel_bytes(w.k()) * ((w.n() + 63) / 64)), pack));
  }

  static std::int64_t panel_bytes(std::int64_t k) { return (k + 1) / 2 * kGroupBytes; }

  static void pack(const PackedWeight& w, void* out) {
    for_each_panel(w, [&](std::int64_t p, const char* rows, std::int64_t count) {
      pack_panel(rows, count, w.k() * 2, static_cast<char*>(out) + p * panel_bytes(w.k()));
    });
  }

  [[gnu::noinline]] static void pack_panel(const char* rows, std::int64_t count, std::int64_t row_bytes, char* panel) {
    transpose_panel(rows, count, row_bytes, [&](std::int64_t i, const Piece& pairs) { store_group(panel, i, pairs); });
  }

  RoundedRows round(const LinearArgs& args, std::int64_t first, std::int64_t count, void* buffer, float* scale) const {
    return bf16_rows<Product::kRowBytes>(args, first, count, buffer, scale);
  }

  void multiply(Tile& t, std::int64_t rows, std::int64_t panel, std::int64_t begin, std::int64_t k) const {
    t.weights = panels + panel * panel_bytes(k) + begin / 2 * kGroupBytes;
    fetch_next(t, panel_bytes(k), t.groups * kGroupBytes);
    Product::multiply(t, rows);
  }

  const char* panels;
};

}  // namespace
}  // namespace octavo::avx512_kernels
