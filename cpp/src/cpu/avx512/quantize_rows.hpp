// The row quantizers: each row is read twice, once from memory for its largest magnitude and then from L1, in one loop:
// the scan of a later row overlaps with the arithmetic of this one. Codes of arrays beyond the last cache go past it.
//
// In an anonymous namespace: every includer has its own copy. Includers are compiled with -ffp-contract=off.
#pragma once

#include <bit>
#include <limits>
#include <string>

#include "cpu/avx512/quantize_bf16_table.hpp"
#include "cpu/avx512/quantize_encode.hpp"
#include "cpu/avx512/quantize_input.hpp"
#include "cpu/cache_size.hpp"
#include "octavo/quantize.hpp"
#include "octavo/threading.hpp"

namespace octavo::avx512_kernels {
namespace {

inline __mmask64 first_lanes(std::int64_t n) { return n >= kStep ? ~0ull : (1ull << n) - 1; }

// Scaled elements to codes. `special` rows hold infinities, which saturate, or NaN.
template <class In, class Format, bool special>
struct Arithmetic {
  __m512 multiplier;

  [[gnu::always_inline]] __m512i operator()(const typename In::Storage* x, __mmask64 lanes) const {
    __m512 v[4];
    In::load(x, lanes, v);
    for (__m512& part : v) part = _mm512_mul_ps(part, multiplier);
    if constexpr (!special) return Format::encode(v);
    __mmask64 nan = 0;
    for (int i = 0; i < 4; ++i) {
      nan |= static_cast<__mmask64>(_mm512_cmp_ps_mask(v[i], v[i], _CMP_UNORD_Q)) << (16 * i);
      v[i] = _mm512_max_ps(_mm512_min_ps(v[i], _mm512_set1_ps(Format::largest)), _mm512_set1_ps(-Format::largest));
    }
    return Format::mark_nan(Format::encode(v), nan);
  }
};

struct Destination {
  std::uint8_t* codes;
  bool past_caches;
};

// Encodes x[0..n) to out, and on the way scans the elements of another row, which come from memory meanwhile. Returns
// what the scanner found.
template <class Scanner, class In, class Encode>
[[gnu::noinline]] std::uint32_t encode_row(const typename In::Storage* x, std::int64_t n, Destination out,
                                           Encode encode, const typename In::Storage* other) {
  Scanner scan;
  std::int64_t i = 0;
  const auto partial = [&](std::int64_t count) {
    const __mmask64 lanes = first_lanes(count);
    scan.step(other + i, lanes);
    _mm512_mask_storeu_epi8(out.codes + i, lanes, encode(x + i, lanes));
    i += count;
  };
  const auto fetch = [&] {
    constexpr std::size_t ahead = 8 << 10;  // bytes: hardware prefetchers stop at the end of a page
    const char* line = reinterpret_cast<const char*>(other + i) + ahead;
#pragma GCC unroll 4
    for (std::size_t at = 0; at < kStep * sizeof(typename In::Storage); at += 64) _mm_prefetch(line + at, _MM_HINT_T1);
  };
  if (out.past_caches) {
    const auto offset = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(out.codes) % kStep);
    if (offset != 0) partial(n < kStep - offset ? n : kStep - offset);
    for (; i + kStep <= n; i += kStep) {
      fetch();
      scan.step(other + i, ~0ull);
      _mm512_stream_si512(reinterpret_cast<__m512i*>(out.codes + i), encode(x + i, ~0ull));
    }
  } else {
    for (; i + kStep <= n; i += kStep) {
      scan.step(other + i, ~0ull);
      _mm512_storeu_si512(out.codes + i, encode(x + i, ~0ull));
    }
  }
  if (i < n) partial(n - i);
  return scan.bits();
}

// How the elements that share a scale are encoded.
template <class In, class Format>
class Recipe {
 public:
  // From the bits of the largest magnitude, and of the largest finite one.
  void set(std::uint32_t largest, std::uint32_t finite, std::int64_t n, const QuantizeArgs& args) {
    special_ = largest >= In::infinity;
    by_table_ = Table::exists && !special_ && n >= kWorthATable;
    const ScalePair pair = scale_for(In::value(finite), args.format, args.pow2_scale);
    multiplier_ = pair.multiplier;
    const bool lost = args.format == DType::i8 && largest > In::infinity;  // INT8 has no code for NaN
    scale_ = lost ? std::numeric_limits<float>::quiet_NaN() : pair.scale;
    if (by_table_) table_.fill(multiplier_);
  }

  // From the largest bits of the row and, if it must, the row.
  void set(std::uint32_t largest, const typename In::Storage* row, std::int64_t n, const QuantizeArgs& args) {
    set(largest, largest < In::infinity ? largest : largest_finite_bits<In>(row, n), n, args);
  }

  float scale() const { return scale_; }

  template <class Scanner>
  std::uint32_t encode(const typename In::Storage* x, std::int64_t n, Destination out,
                       const typename In::Storage* other) const {
    const __m512 multiplier = _mm512_set1_ps(multiplier_);
    if (special_) return encode_row<Scanner, In>(x, n, out, Arithmetic<In, Format, true>{multiplier}, other);
    if constexpr (Table::exists)
      if (by_table_) return encode_row<Scanner, In>(x, n, out, table_, other);
    return encode_row<Scanner, In>(x, n, out, Arithmetic<In, Format, false>{multiplier}, other);
  }

 private:
  using Table = Bf16Table<In, Format>;
  static constexpr std::int64_t kWorthATable = 256;  // elements that pay for making it

  bool special_, by_table_;
  float scale_, multiplier_;
  Table table_;
};

// One row after the other on every thread. While row r is encoded, from L1, row r + 2 is scanned, from memory, and row
// r + 1's recipe, a chain of latencies (maximum, divisions, table), is made.
template <class In, class Format>
void quantize_narrow(const QuantizeArgs& args, int count, bool past_caches) {
  using Storage = typename In::Storage;
  const auto* x = static_cast<const Storage*>(args.x.data);
  auto* codes = static_cast<std::uint8_t*>(args.codes);
  const std::int64_t rows = args.x.rows, cols = args.x.cols, stride = args.x.row_stride;
  parallel_region(count, [&](int thread, int n) {
    const auto [begin, end] = partition(rows, thread, n);
    if (begin == end) return;
    const auto row = [&](std::int64_t r) { return x + (r < end ? r : end - 1) * stride; };
    Recipe<In, Format> recipes[2];  // of even and of odd rows
    recipes[begin & 1].set(largest_bits<In>(row(begin), cols), row(begin), cols, args);
    std::uint32_t largest = largest_bits<In>(row(begin + 1), cols);
    for (std::int64_t r = begin; r < end; ++r) {
      recipes[(r + 1) & 1].set(largest, row(r + 1), cols, args);
      const Recipe<In, Format>& recipe = recipes[r & 1];
      args.scale[r] = recipe.scale();
      largest = recipe.template encode<Scan<In>>(row(r), cols, {codes + r * cols, past_caches}, row(r + 2));
    }
    if (past_caches) _mm_sfence();
  });
}

// The same for rows of which L1 holds no three: each is scanned just before it is encoded.
template <class In, class Format>
void quantize_long(const QuantizeArgs& args, int count, bool past_caches) {
  const auto* x = static_cast<const typename In::Storage*>(args.x.data);
  auto* codes = static_cast<std::uint8_t*>(args.codes);
  const std::int64_t cols = args.x.cols;
  parallel_region(count, [&](int thread, int n) {
    const auto [begin, end] = partition(args.x.rows, thread, n);
    for (std::int64_t r = begin; r < end; ++r) {
      const auto* row = x + r * args.x.row_stride;
      Recipe<In, Format> recipe;
      recipe.set(largest_bits<In>(row, cols), row, cols, args);
      args.scale[r] = recipe.scale();
      recipe.template encode<NoScan>(row, cols, {codes + r * cols, past_caches}, row);
    }
    if (past_caches) _mm_sfence();
  });
}

// Fewer rows than threads: every row is cut in parts.
template <class In, class Format>
void quantize_wide(const QuantizeArgs& args, int count, bool past_caches) {
  constexpr int kMaxParts = 256;
  const auto* x = static_cast<const typename In::Storage*>(args.x.data);
  auto* codes = static_cast<std::uint8_t*>(args.codes);
  const int used = count < kMaxParts ? count : kMaxParts;
  for (std::int64_t r = 0; r < args.x.rows; ++r) {
    const auto* row = x + r * args.x.row_stride;
    std::uint32_t largest[kMaxParts] = {}, finite[kMaxParts] = {};
    parallel_region(used, [&](int thread, int n) {
      const auto [begin, end] = partition(args.x.cols, thread, n, kStep);
      largest[thread] = largest_bits<In>(row + begin, end - begin);
      finite[thread] =
          largest[thread] < In::infinity ? largest[thread] : largest_finite_bits<In>(row + begin, end - begin);
    });
    for (int part = 1; part < used; ++part) {
      largest[0] = largest[part] > largest[0] ? largest[part] : largest[0];
      finite[0] = finite[part] > finite[0] ? finite[part] : finite[0];
    }
    Recipe<In, Format> recipe;
    recipe.set(largest[0], finite[0], args.x.cols, args);
    args.scale[r] = recipe.scale();
    parallel_region(used, [&](int thread, int n) {
      const auto [begin, end] = partition(args.x.cols, thread, n, kStep);
      const auto* part = row + begin;
      recipe.template encode<NoScan>(part, end - begin, {codes + r * args.x.cols + begin, past_caches}, part);
      if (past_caches) _mm_sfence();
    });
  }
}

template <class In, class Format>
void quantize_matrix(const QuantizeArgs& args) {
  constexpr std::int64_t two_threads = 65536;      // elements from which a second thread pays
  constexpr std::int64_t longest_bytes = 8 << 10;  // of rows of which three lie in L1
  const std::int64_t size = args.x.rows * args.x.cols;
  const int count = size < two_threads ? 1 : threads();
  const std::int64_t bytes = size * static_cast<std::int64_t>(sizeof(typename In::Storage) + 1);
  const bool past_caches = bytes > last_cache_bytes();
  if (args.x.rows < count && args.x.cols >= two_threads / 2)
    quantize_wide<In, Format>(args, count, past_caches);
  else if (args.x.cols * static_cast<std::int64_t>(sizeof(typename In::Storage)) > longest_bytes)
    quantize_long<In, Format>(args, count, past_caches);
  else
    quantize_narrow<In, Format>(args, count, past_caches);
}

// The one format and row scaling that a kernel serves, for every input type.
template <class Format>
Status quantize_rows_of(const QuantizeArgs& args, const char* name) {
  if (args.format != Format::format || args.scaling != Scaling::row)
    return Status::unsupported(std::string(name) + ": serves one format with row scaling only");
  if (Status status = validate(args); !status.ok()) return status;
  switch (args.x.dtype) {
    case DType::f32: quantize_matrix<F32, Format>(args); break;
    case DType::bf16: quantize_matrix<Bf16, Format>(args); break;
    default: quantize_matrix<F16, Format>(args);
  }
  return {};
}

}  // namespace
}  // namespace octavo::avx512_kernels
