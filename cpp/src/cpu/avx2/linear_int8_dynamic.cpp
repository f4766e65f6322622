// x and W in symmetric INT8 for CPUs without VNNI: codes in 16 bits, vpmaddwd on pairs of them, INT32 sums. Exact;
// vpmaddubsw would saturate, and with the vpmaddwd it needs behind it keeps the multipliers busy for as long.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "cpu/linear_driver.hpp"
#include "octavo/quantize.hpp"

namespace octavo::avx2_kernels {
namespace {

constexpr std::int64_t kPairBytes = 32;  // a pair of K elements of a panel's 16 columns, in bytes
constexpr int kTileRows = 6;             // 12 sums, two vectors of weights, activations and a product: 16 registers

typedef std::int32_t UnalignedPair __attribute__((aligned(1), may_alias));

[[gnu::always_inline]] inline __m256i first_lanes(std::int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(std::min<std::int64_t>(count, 8))), lane);
}

// sums[r][v] += x * w. Inline asm keeps the sum where it is.
[[gnu::always_inline]] inline void add_product(__m256i& sum, __m256i x, __m256i w) {
  __m256i product;
  asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=x"(product) : "x"(x), "x"(w));
}

template <int R>
[[gnu::noinline]] void multiply_tile(const Tile& t) {
  __m256i sums[R][2];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v)
      sums[r][v] = t.first ? _mm256_setzero_si256()
                           : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(t.c + r * t.c_stride + v * 8));
  const char* a[R];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) a[r] = t.a + r * t.a_stride;
  const auto* weights = reinterpret_cast<const __m128i*>(t.weights);
  for (std::int64_t g = 0; g < t.groups; ++g) {
    const __m256i left = _mm256_cvtepi8_epi16(_mm_loadu_si128(weights + 2 * g));
    const __m256i right = _mm256_cvtepi8_epi16(_mm_loadu_si128(weights + 2 * g + 1));
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const __m256i x = _mm256_set1_epi32(*reinterpret_cast<const UnalignedPair*>(a[r] + g * 4));
      add_product(sums[r][0], x, left);
      add_product(sums[r][1], x, right);
    }
  }
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
    float* c = t.c + v * 8;
    if (!t.last) {
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + r * t.c_stride), sums[r][v]);
      continue;
    }
    const __m256i mask = first_lanes(t.columns - v * 8);
    const __m256 bias = t.bias == nullptr ? _mm256_setzero_ps() : _mm256_maskload_ps(t.bias + v * 8, mask);
    const __m256 scale = _mm256_maskload_ps(t.column_scale + v * 8, mask);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const __m256 both = _mm256_mul_ps(_mm256_set1_ps(t.row_scale[r]), scale);
      _mm256_storeu_ps(c + r * t.c_stride, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[r][v]), both, bias));
    }
  }
}

void multiply_rest(const Tile& t, std::int64_t rows) {
  switch (rows) {
    case 1: return multiply_tile<1>(t);
    case 2: return multiply_tile<2>(t);
    case 3: return multiply_tile<3>(t);
    case 4: return multiply_tile<4>(t);
    case 5: return multiply_tile<5>(t);
    default: return;
  }
}

// Eight elements as FP32; `mask` says which exist, the others are 0.
[[gnu::always_inline]] inline __m256 load8(const float* x, std::int64_t left) {
  return left >= 8 ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, first_lanes(left));
}
[[gnu::always_inline]] inline __m256 load8(const std::uint16_t* x, std::int64_t left) {
  alignas(16) std::uint16_t part[8] = {};
  if (left < 8) x = std::copy_n(x, std::max<std::int64_t>(left, 0), part) - std::max<std::int64_t>(left, 0);
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

// As activation_scale() of the generic kernels: infinities do not count, a NaN makes the scale NaN.
template <class T>
[[gnu::noinline]] ScalePair scale_of(const T* x, std::int64_t k) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff), infinity = _mm256_set1_epi32(0x7f800000);
  __m256i largest = _mm256_setzero_si256(), nan = _mm256_setzero_si256();
  for (std::int64_t i = 0; i < k; i += 8) {
    const __m256i bits = _mm256_and_si256(_mm256_castps_si256(load8(x + i, k - i)), magnitude);
    const __m256i finite = _mm256_and_si256(bits, _mm256_cmpgt_epi32(infinity, bits));
    largest = _mm256_max_epi32(largest, finite);
    nan = _mm256_or_si256(nan, _mm256_cmpgt_epi32(bits, infinity));
  }
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, _mm256_castsi256_ps(largest));
  ScalePair pair = scale_for(*std::max_element(lanes, lanes + 8), DType::i8, false);
  if (_mm256_movemask_epi8(nan) != 0) pair.scale = __builtin_nanf("");
  return pair;
}

template <class T>
[[gnu::noinline]] void quantize_row(const T* x, std::int64_t k, float multiplier, std::int16_t* out) {
  const __m256 m = _mm256_set1_ps(multiplier), top = _mm256_set1_ps(127.0f), bottom = _mm256_set1_ps(-127.0f);
  const auto codes = [&](std::int64_t i) {
    const __m256 v = _mm256_mul_ps(load8(x + i, k - i), m);
    return _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(v, top), bottom));
  };
  for (std::int64_t i = 0; i < k; i += 16) {
    const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(codes(i), codes(i + 8)), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), both);
  }
}

struct Int8Class {
  static constexpr std::int64_t kColumns = 16, kGroup = 2, kElementBytes = 2, kBlockRows = 48, kRowGrain = 6,
                                kCutColumnsBelow = 2 * kTileRows;

  explicit Int8Class(const PackedWeight& w) : panel_bytes(bytes_of(w.k())), panels(layout_of(w)) {}

  static std::int64_t bytes_of(std::int64_t k) { return (k + 1) / 2 * kPairBytes; }

  static const char* layout_of(const PackedWeight& w) {
    static const char tag = 0;
    const std::int64_t bytes = (w.n() + kColumns - 1) / kColumns * bytes_of(w.k());
    return static_cast<const char*>(w.layout(&tag, to_bytes(bytes), pack));
  }

  // [panel][pair of K][column][2]; zero where there is no column or element.
  static void pack(const PackedWeight& w, void* out) {
    const auto* codes = static_cast<const std::int8_t*>(w.codes());
    const std::int64_t n = w.n(), k = w.k(), bytes = bytes_of(k);
    parallel_region(n * k < kSerialMacs ? 1 : threads(), [&](int thread, int used) {
      const Range own = partition((n + kColumns - 1) / kColumns, thread, used);
      for (std::int64_t p = own.begin; p < own.end; ++p) {
        char* panel = static_cast<char*>(out) + p * bytes;
        std::fill_n(panel, bytes, 0);
        for (std::int64_t column = 0; column < std::min(kColumns, n - p * kColumns); ++column) {
          const std::int8_t* row = codes + (p * kColumns + column) * k;
          char* to = panel + column * 2;
          for (std::int64_t i = 0; i + 1 < k; i += 2, to += kPairBytes) std::memcpy(to, row + i, 2);
          if (k % 2 != 0) *to = row[k - 1];
        }
      }
    });
  }

  RoundedRows round(const LinearArgs& args, std::int64_t first, std::int64_t count, void* buffer, float* scale) const {
    const MatrixView& x = args.x;
    const std::int64_t k = x.cols, stride = round_up(k * kElementBytes, 64);
    for (std::int64_t r = 0; r < count; ++r) {
      const char* row = row_of(x, first + r);
      auto* out = reinterpret_cast<std::int16_t*>(static_cast<char*>(buffer) + r * stride);
      if (x.dtype == DType::i8) {
        scale[r] = args.x_scale[first + r];
        std::copy_n(reinterpret_cast<const std::int8_t*>(row), k, out);
        std::fill_n(out + k, k % 2, 0);
        continue;
      }
      scale[r] = x.dtype == DType::bf16 ? quantize(reinterpret_cast<const std::uint16_t*>(row), k, out)
                                        : quantize(reinterpret_cast<const float*>(row), k, out);
    }
    return {static_cast<const char*>(buffer), stride};
  }

  template <class T>
  static float quantize(const T* row, std::int64_t k, std::int16_t* out) {
    const ScalePair pair = scale_of(row, k);
    quantize_row(row, k, pair.multiplier, out);
    return pair.scale;
  }

  void multiply(Tile& t, std::int64_t rows, std::int64_t panel, std::int64_t begin, std::int64_t) const {
    t.weights = panels + panel * panel_bytes + begin / 2 * kPairBytes;
    for (; rows >= kTileRows; rows -= kTileRows) {
      multiply_tile<kTileRows>(t);
      t.a += kTileRows * t.a_stride;
      t.c += kTileRows * t.c_stride;
      t.row_scale += kTileRows;
    }
    multiply_rest(t, rows);
  }

  std::int64_t panel_bytes;
  const char* panels;
};

}  // namespace

void linear_int8_dynamic(const LinearArgs& args) { run_linear<Int8Class>(args); }

}  // namespace octavo::avx2_kernels
