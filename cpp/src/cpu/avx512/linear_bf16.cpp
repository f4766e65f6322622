// x and W in BF16, FP32 sums: vdpbf16ps on panels of pairs.
#include "cpu/avx512/linear_bf16_class.hpp"
#include "cpu/avx512/transpose.hpp"

namespace octavo::avx512_kernels {
namespace {

struct Bf16Class {
  static constexpr std::int64_t kGroup = 2, kElementBytes = 2, kBlockRows = 96, kCutColumnsBelow = 5;

  explicit Bf16Class(const PackedWeight& w) {
    static const char tag = 0;
    panels = static_cast<const char*>(w.layout(&tag, to_bytes(panel_bytes(w.k()) * ((w.n() + 63) / 64)), pack));
  }

  static std::int64_t panel_bytes(std::int64_t k) { return (k + 1) / 2 * kGroupBytes; }

  // Sixteen columns of sixteen pairs at a time: a training step packs its weights anew.
  static void pack(const PackedWeight& w, void* out) {
    const std::int64_t n = w.n(), k = w.k();
    parallel_region(n * k < kSerialMacs ? 1 : threads(), [&](int thread, int used) {
      const Range own = partition(round_up(n, kPanel), thread, used, 16);
      for (std::int64_t column = own.begin; column < own.end; column += 16) {
        const auto* first = static_cast<const std::uint16_t*>(w.codes()) + column * k;
        pack_columns(first, n - column, k,
                     static_cast<char*>(out) + column / kPanel * panel_bytes(k) + column % kPanel * 4);
      }
    });
  }

  // The first 16 of `count` rows [k] -> [groups] vectors of 16 pairs, zero where there is none.
  [[gnu::noinline]] static void pack_columns(const std::uint16_t* rows, std::int64_t count, std::int64_t k, char* out) {
    for (std::int64_t i = 0; i < k; i += 32) {
      const std::int64_t left = k - i, groups = left >= 32 ? 16 : (left + 1) / 2;
      const __mmask32 mask = left >= 32 ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
      __m512i block[16];
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) block[r] = _mm512_maskz_loadu_epi16(r < count ? mask : 0, rows + r * k + i);
      transpose(block);
#pragma GCC unroll 16
      for (int g = 0; g < 16; ++g)
        if (g < groups) _mm512_storeu_si512(out + (i / 2 + g) * kGroupBytes, block[g]);
    }
  }

  RoundedRows round(const LinearArgs& args, std::int64_t first, std::int64_t count, void* buffer, float* scale) const {
    return bf16_rows(args, first, count, buffer, scale);
  }

  void multiply(Tile t, std::int64_t rows, std::int64_t panel, std::int64_t begin, std::int64_t k) const {
    t.weights = panels + panel * panel_bytes(k) + begin / 2 * kGroupBytes;
    fetch_next(t, panel_bytes(k), t.groups * kGroupBytes);
    multiply_rows<Bf16Dot>(t, rows);
  }

  const char* panels;
};

}  // namespace

void linear_bf16(const LinearArgs& args) { run_linear<Bf16Class>(args); }

}  // namespace octavo::avx512_kernels
