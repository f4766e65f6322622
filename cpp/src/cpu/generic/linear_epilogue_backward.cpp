// Gradient of z through activation and norm, one pass over each row, and the sums over rows that parameters need.
//
// Rows are cut into chunks whose number depends on M alone; each chunk sums its rows and the chunks are added in order,
// so every thread count gives the same bits.
#include <type_traits>

#include "cpu/generic/linear_vector.hpp"
#include "cpu/per_isa.hpp"
#include "octavo/linear_backward.hpp"
#include "octavo/memory.hpp"
#include "octavo/threading.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kSerialElements = 8192;  // a fork costs more than this much work

// Gradient of act(v) times g; borders as torch has them.
template <Activation activation>
[[gnu::always_inline]] inline Vec pull(Vec g, Vec v) {
  switch (activation) {
    case Activation::relu: return v <= 0.0f ? Vec{} : g;
    case Activation::silu: {
      const Vec s = sigmoid(v);
      return g * (s * (1.0f + v * (1.0f - s)));
    }
    case Activation::gelu: return g * gelu_slope(v);
    case Activation::hardswish: return v <= -3.0f ? Vec{} : v < 3.0f ? g * (v * (1.0f / 3.0f) + 0.5f) : g;
    case Activation::sigmoid: {
      const Vec s = sigmoid(v);
      return g * ((1.0f - s) * s);
    }
    default: return g;
  }
}

// Sums over the rows of one chunk; null where nobody asked.
struct Sums {
  float *bias, *norm_weight, *norm_bias;
};

// f(i, left): whole vectors first (left == kLanes), then what is left.
template <class F>
[[gnu::always_inline]] inline void for_each_vector(std::int64_t begin, std::int64_t end, F f) {
  std::int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) f(i, std::integral_constant<bool, true>{}, std::int64_t{kLanes});
  if (i < end) f(i, std::integral_constant<bool, false>{}, end - i);
}

template <bool whole, class T>
[[gnu::always_inline]] inline Vec read(const T* p, std::int64_t count) {
  if constexpr (whole) return load(p);
  return load_part(p, count);
}
template <bool whole, class T>
[[gnu::always_inline]] inline void write(T* p, Vec v, std::int64_t count) {
  if constexpr (whole) {
    store(p, v);
  } else {
    store_part(p, v, count);
  }
}

// One row. Sums and scratch are padded to whole vectors.
template <Activation activation, class In, class Out>
struct Row {
  const EpilogueBackwardArgs& args;
  const In *z, *grad;
  Out* out;  // null: not wanted
  void* extra;
  Sums sums;
  float *weighted, *normal;  // scratch [N]: gradient of the normalised z, and that z

  [[gnu::always_inline]] inline void emit(std::int64_t i, auto whole, std::int64_t left, Vec gz) const {
    if (out != nullptr) write<whole>(out + i, gz, left);
    if (extra != nullptr) {
      if (args.grad_extra.dtype == DType::bf16) {
        write<whole>(static_cast<std::uint16_t*>(extra) + i, gz, left);
      } else {
        write<whole>(static_cast<float*>(extra) + i, gz, left);
      }
    }
    if (sums.bias != nullptr) store(sums.bias + i, load(sums.bias + i) + gz);
  }

  // Without a norm.
  void plain(std::int64_t n) const {
    for_each_vector(0, n, [&](std::int64_t i, auto whole, std::int64_t left) {
      const Vec g = read<whole>(grad + i, left);
      if constexpr (activation == Activation::none) {
        emit(i, whole, left, g);
      } else {
        const Vec gz = pull<activation>(g, read<whole>(z + i, left));
        emit(i, whole, left, whole ? gz : keep_first(gz, left));
      }
    });
  }

  // Columns [begin, end) that share a mean (layer: `centred`) and a mean square.
  template <bool centred>
  void block(std::int64_t begin, std::int64_t end) const {
    const std::int64_t n = end - begin;
    const float count = static_cast<float>(n);
    const float mean = centred ? sum(z + begin, n, [](Vec s, Vec v) { return s + v; }) / count : 0.0f;
    const float squares = sum(z + begin, n, [&](Vec s, Vec v) { return multiply_add(v - mean, v - mean, s); });
    const float factor = 1.0f / __builtin_sqrtf(squares / count + args.epilogue.eps);
    const float *weight = args.epilogue.norm_weight, *bias = args.epilogue.norm_bias;
    Vec total{}, product{};
    for_each_vector(begin, end, [&](std::int64_t i, auto whole, std::int64_t left) {
      const Vec x = (read<whole>(z + i, left) - mean) * factor;
      Vec g = read<whole>(grad + i, left);
      Vec w{};
      if (weight != nullptr) w = read<whole>(weight + i, left);
      if constexpr (activation != Activation::none) {
        Vec v = weight != nullptr ? x * w : x;
        if (bias != nullptr) v += read<whole>(bias + i, left);
        g = pull<activation>(g, v);
      }
      if (!whole) g = keep_first(g, left);
      if (sums.norm_weight != nullptr) store(sums.norm_weight + i, load(sums.norm_weight + i) + g * x);
      if (sums.norm_bias != nullptr) store(sums.norm_bias + i, load(sums.norm_bias + i) + g);
      if (weight != nullptr) g *= w;
      if (!whole) g = keep_first(g, left);
      const Vec kept = whole ? x : keep_first(x, left);
      total += g;
      product += g * kept;
      store(weighted + i, g);
      store(normal + i, kept);
    });
    const float shift = centred ? sum_of(total) / count : 0.0f, slope = sum_of(product) / count;
    for_each_vector(begin, end, [&](std::int64_t i, auto whole, std::int64_t left) {
      const Vec gz = (load(weighted + i) - shift - load(normal + i) * slope) * factor;
      emit(i, whole, left, whole ? gz : keep_first(gz, left));
    });
  }

  void run(std::int64_t n) const {
    switch (args.epilogue.norm) {
      case NormKind::none: plain(n); return;
      case NormKind::layer: block<true>(0, n); return;
      case NormKind::rms:
      case NormKind::swish_rms: block<false>(0, n); return;
      default: {
        const std::int64_t width = args.epilogue.norm_block;
        for (std::int64_t begin = 0; begin < n; begin += width)
          block<false>(begin, n - begin < width ? n : begin + width);
      }
    }
  }
};

std::int64_t padded(std::int64_t n) { return (n + 31) / 16 * 16; }  // a block's last vector may start anywhere
std::int64_t rows_per_chunk(std::int64_t m) { return m <= 16 * 64 ? 16 : (m + 63) / 64; }

char* row_at(const MatrixView& v, std::int64_t row) {
  return v.data == nullptr
             ? nullptr
             : static_cast<char*>(v.data) + row * v.row_stride * static_cast<std::int64_t>(size_of(v.dtype));
}

// The chunk's rows [first, last) into `sums`, which start at zero.
template <Activation activation, class In, class Out>
void run_chunk(const EpilogueBackwardArgs& args, std::int64_t first, std::int64_t last, Sums sums) {
  const std::int64_t n = args.grad.cols, width = padded(n);
  for (float* s : {sums.bias, sums.norm_weight, sums.norm_bias})
    if (s != nullptr) std::memset(s, 0, static_cast<std::size_t>(width) * sizeof(float));
  auto* weighted = static_cast<float*>(scratch(0, static_cast<std::size_t>(2 * width) * sizeof(float)));
  for (std::int64_t r = first; r < last; ++r)
    Row<activation, In, Out>{args,
                             reinterpret_cast<const In*>(row_at(args.z, r)),
                             reinterpret_cast<const In*>(row_at(args.grad, r)),
                             reinterpret_cast<Out*>(row_at(args.grad_z, r)),
                             row_at(args.grad_extra, r),
                             sums,
                             weighted,
                             weighted + width}
        .run(n);
}

using ChunkRunner = void (*)(const EpilogueBackwardArgs&, std::int64_t, std::int64_t, Sums);

template <class In, class Out>
ChunkRunner runner_for(Activation activation) {
  switch (activation) {
    case Activation::relu: return run_chunk<Activation::relu, In, Out>;
    case Activation::silu: return run_chunk<Activation::silu, In, Out>;
    case Activation::gelu: return run_chunk<Activation::gelu, In, Out>;
    case Activation::hardswish: return run_chunk<Activation::hardswish, In, Out>;
    case Activation::sigmoid: return run_chunk<Activation::sigmoid, In, Out>;
    default: return run_chunk<Activation::none, In, Out>;
  }
}

ChunkRunner runner_for(const EpilogueBackwardArgs& args) {
  const Activation a = args.epilogue.last_activation();
  if (args.grad.dtype == DType::bf16)
    return args.grad_z.dtype == DType::bf16 ? runner_for<std::uint16_t, std::uint16_t>(a)
                                            : runner_for<std::uint16_t, float>(a);
  return args.grad_z.dtype == DType::bf16 ? runner_for<float, std::uint16_t>(a) : runner_for<float, float>(a);
}

}  // namespace

void linear_epilogue_backward(const EpilogueBackwardArgs& args) {
  const std::int64_t m = args.grad.rows, n = args.grad.cols;
  if (n == 0) return;
  float* const wanted[] = {args.grad_bias, args.grad_norm_weight, args.grad_norm_bias};
  int kinds = 0;
  for (const float* target : wanted) kinds += target != nullptr;
  const std::int64_t width = padded(n), grain = rows_per_chunk(m), chunks = (m + grain - 1) / grain;
  auto* partial = static_cast<float*>(scratch(1, static_cast<std::size_t>(chunks * kinds * width) * sizeof(float)));
  const auto sums_of = [&](std::int64_t chunk, int kind) { return partial + (chunk * kinds + kind) * width; };
  const ChunkRunner run = runner_for(args);
  const int count = m * n < kSerialElements ? 1 : threads();
  parallel_region(count < chunks ? count : static_cast<int>(chunks), [&](int thread, int used) {
    const Range own = partition(chunks, thread, used);
    for (std::int64_t c = own.begin; c < own.end; ++c) {
      float* sums[3];
      int kind = 0;
      for (int i = 0; i < 3; ++i) sums[i] = wanted[i] == nullptr ? nullptr : sums_of(c, kind++);
      run(args, c * grain, m - c * grain < grain ? m : (c + 1) * grain, {sums[0], sums[1], sums[2]});
    }
  });
  int kind = 0;
  for (float* target : wanted) {
    if (target == nullptr) continue;
    for_each_vector(0, n, [&](std::int64_t i, auto whole, std::int64_t left) {
      Vec total{};
      for (std::int64_t c = 0; c < chunks; ++c) total += load(sums_of(c, kind) + i);
      write<whole>(target + i, total, left);
    });
    ++kind;
  }
}

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
