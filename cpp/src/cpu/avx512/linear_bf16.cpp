// x and W in BF16, FP32 sums: vdpbf16ps on panels of pairs.
#include "cpu/avx512/linear_bf16_class.hpp"

namespace octavo::avx512_kernels {
namespace {

struct Bf16Class {
  static constexpr std::int64_t kGroup = 2, kElementBytes = 2, kBlockRows = 96, kCutColumnsBelow = 5;

  explicit Bf16Class(const PackedWeight& w) {
    static const char tag = 0;
    panels = static_cast<const char*>(w.layout(&tag, to_bytes(panel_bytes(w.k()) * ((w.n() + 63) / 64)), pack));
  }

  static std::int64_t panel_bytes(std::int64_t k) { return (k + 1) / 2 * kGroupBytes; }

  // Sixteen columns' pairs at a time: a training step packs its weights anew.
  static void pack(const PackedWeight& w, void* out) {
    const auto* codes = static_cast<const std::uint16_t*>(w.codes());
    const std::int64_t n = w.n(), k = w.k(), groups = (k + 1) / 2, columns = round_up(n, kPanel);
    const __m512i rows = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                            _mm512_set1_epi32(static_cast<int>(k * 2)));  // bytes
    parallel_region(n * k < kSerialMacs ? 1 : threads(), [&](int thread, int used) {
      const Range own = partition(columns, thread, used, 16);
      for (std::int64_t column = own.begin; column < own.end; column += 16) {
        char* to = static_cast<char*>(out) + column / kPanel * panel_bytes(k) + column % kPanel * 4;
        const __mmask16 mask = first_lanes(n - column);
        for (std::int64_t g = 0; g < groups; ++g) {
          __m512i pairs = _mm512_setzero_si512();
          if (mask != 0 && 2 * g + 1 < k) {
            pairs = _mm512_mask_i32gather_epi32(pairs, mask, rows, codes + column * k + 2 * g, 1);
          } else if (mask != 0) {  // the last of an odd K has no partner
            alignas(64) std::uint32_t single[16] = {};
            for (std::int64_t c = 0; c < 16 && column + c < n; ++c) single[c] = codes[(column + c) * k + 2 * g];
            pairs = _mm512_load_si512(single);
          }
          _mm512_storeu_si512(to + g * kGroupBytes, pairs);
        }
      }
    });
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
