// The row quantizers: each row is read twice, once from memory for its largest magnitude and then from L1, while
// prefetches bring the next row; codes of arrays beyond the last cache go past it.
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

// Encodes x[0..n) to out; `next` is where the elements lie that are wanted in L1 next.
template <class In, class Encode>
void encode_row(const typename In::Storage* x, std::int64_t n, const typename In::Storage* next, Destination out,
                Encode encode) {
  std::int64_t i = 0;
  const auto partial = [&](std::int64_t count) {
    const __mmask64 lanes = first_lanes(count);
    _mm512_mask_storeu_epi8(out.codes + i, lanes, encode(x + i, lanes));
    i += count;
  };
  const auto fetch = [&] {
    const char* line = reinterpret_cast<const char*>(next + i);
#pragma GCC unroll 4
    for (std::size_t at = 0; at < kStep * sizeof(typename In::Storage); at += 64) _mm_prefetch(line + at, _MM_HINT_T0);
  };
  if (out.past_caches) {
    const auto offset = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(out.codes) % kStep);
    if (offset != 0) partial(n < kStep - offset ? n : kStep - offset);
    for (; i + kStep <= n; i += kStep) {
      fetch();
      _mm512_stream_si512(reinterpret_cast<__m512i*>(out.codes + i), encode(x + i, ~0ull));
    }
  } else {
    for (; i + kStep <= n; i += kStep) {
      fetch();
      _mm512_storeu_si512(out.codes + i, encode(x + i, ~0ull));
    }
  }
  if (i < n) partial(n - i);
}

// scale and codes of elements whose largest magnitude has these bits.
struct Recipe {
  ScalePair pair;
  bool special;  // holds infinities or NaN
};

template <class In>
Recipe recipe_for(std::uint32_t largest_bits, std::uint32_t largest_finite_bits, const QuantizeArgs& args) {
  Recipe recipe{scale_for(In::value(largest_finite_bits), args.format, args.pow2_scale), false};
  recipe.special = largest_bits >= In::infinity;
  if (largest_bits > In::infinity && args.format == DType::i8)  // INT8 has no code for NaN
    recipe.pair.scale = std::numeric_limits<float>::quiet_NaN();
  return recipe;
}

template <class In, class Format>
void encode_by(const Recipe& recipe, const typename In::Storage* x, std::int64_t n, const typename In::Storage* next,
               Destination out) {
  const __m512 multiplier = _mm512_set1_ps(recipe.pair.multiplier);
  if (recipe.special) return encode_row<In>(x, n, next, out, Arithmetic<In, Format, true>{multiplier});
  if constexpr (Bf16Table<In, Format>::exists) {
    constexpr std::int64_t worth = 256;  // elements that pay for making the table
    if (n >= worth) return encode_row<In>(x, n, next, out, Bf16Table<In, Format>(recipe.pair.multiplier));
  }
  encode_row<In>(x, n, next, out, Arithmetic<In, Format, false>{multiplier});
}

// One row after the other on every thread.
template <class In, class Format>
void quantize_narrow(const QuantizeArgs& args, int count, bool past_caches) {
  using Storage = typename In::Storage;
  const auto* x = static_cast<const Storage*>(args.x.data);
  auto* codes = static_cast<std::uint8_t*>(args.codes);
  const std::int64_t rows = args.x.rows, cols = args.x.cols, stride = args.x.row_stride;
  // Some pages ahead for short rows, the next row for long ones; rows that fill L2 would push each other out of it.
  constexpr std::int64_t ahead_bytes = 4096, widest_bytes = 256 << 10;
  const std::int64_t row_bytes = cols * static_cast<std::int64_t>(sizeof(Storage));
  const std::int64_t ahead = row_bytes > widest_bytes ? 0 : row_bytes > 0 ? 1 + (ahead_bytes - 1) / row_bytes : 0;
  parallel_region(count, [&](int thread, int n) {
    const auto [begin, end] = partition(rows, thread, n);
    for (std::int64_t r = begin; r < end; ++r) {
      const Storage* row = x + r * stride;
      const std::uint32_t largest = largest_bits<In>(row, cols);
      const std::uint32_t finite = largest < In::infinity ? largest : largest_finite_bits<In>(row, cols);
      const Recipe recipe = recipe_for<In>(largest, finite, args);
      args.scale[r] = recipe.pair.scale;
      const Storage* next = r + ahead < end ? row + ahead * stride : row;
      encode_by<In, Format>(recipe, row, cols, next, {codes + r * cols, past_caches});
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
    const Recipe recipe = recipe_for<In>(largest[0], finite[0], args);
    args.scale[r] = recipe.pair.scale;
    parallel_region(used, [&](int thread, int n) {
      const auto [begin, end] = partition(args.x.cols, thread, n, kStep);
      const auto* part = row + begin;
      encode_by<In, Format>(recipe, part, end - begin, part, {codes + r * args.x.cols + begin, past_caches});
      if (past_caches) _mm_sfence();
    });
  }
}

template <class In, class Format>
void quantize_matrix(const QuantizeArgs& args) {
  constexpr std::int64_t two_threads = 65536;  // elements from which a second thread pays
  const std::int64_t size = args.x.rows * args.x.cols;
  const int count = size < two_threads ? 1 : threads();
  const std::int64_t bytes = size * static_cast<std::int64_t>(sizeof(typename In::Storage) + 1);
  const bool past_caches = bytes > last_cache_bytes();
  if (args.x.rows < count && args.x.cols >= two_threads / 2)
    quantize_wide<In, Format>(args, count, past_caches);
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
