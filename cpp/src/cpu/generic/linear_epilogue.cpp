#include "cpu/generic/linear_epilogue.hpp"

#include "cpu/generic/linear_vector.hpp"
#include "cpu/generic/quantize_row.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

// sum of f(v) over v = row[0 .. n): four chains, then pairwise.
template <class F>
[[gnu::always_inline]] inline float sum(const float* row, std::int64_t n, F f) {
  Vec s0{}, s1{}, s2{}, s3{};
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    s0 += f(load(row + i));
    s1 += f(load(row + i + kLanes));
    s2 += f(load(row + i + 2 * kLanes));
    s3 += f(load(row + i + 3 * kLanes));
  }
  for (; i + kLanes <= n; i += kLanes) s0 += f(load(row + i));
  if (i < n) s1 += keep_first(f(load_part(row + i, n - i)), n - i);
  return sum_of((s0 + s1) + (s2 + s3));
}

template <Activation activation>
[[gnu::always_inline]] inline Vec activate(Vec v) {
  switch (activation) {
    case Activation::relu: return v < 0.0f ? Vec{} : v;
    case Activation::silu: return v * sigmoid(v);
    case Activation::gelu: return gelu(v);
    case Activation::hardswish: return hardswish(v);
    case Activation::sigmoid: return sigmoid(v);
    default: return v;
  }
}

// Where finished numbers of a row go: FP32 or BF16 outputs.
template <class Out>
struct Numbers {
  Out* y;
  [[gnu::always_inline]] inline void put(std::int64_t i, Vec v) { store(y + i, v); }
  [[gnu::always_inline]] inline void put_part(std::int64_t i, Vec v, std::int64_t left) { store_part(y + i, v, left); }
};

// Or back to the row, to be quantized when the last one and so the scale is known.
struct Quantized {
  float* y;
  Ints largest{}, widest{};  // magnitude bits: of finite numbers, of all

  [[gnu::always_inline]] inline void put(std::int64_t i, Vec v) {
    store(y + i, v);
    widen(v);
  }
  [[gnu::always_inline]] inline void put_part(std::int64_t i, Vec v, std::int64_t left) {
    store_part(y + i, v, left);  // the next block's columns follow
    widen(keep_first(v, left));
  }
  [[gnu::always_inline]] inline void widen(Vec v) {
    const Ints bits = reinterpret_cast<Ints>(v) & 0x7fffffff;
    const Ints finite = bits < 0x7f800000 ? bits : Ints{};
    widest = bits > widest ? bits : widest;
    largest = finite > largest ? finite : largest;
  }
};

// What becomes of the columns [begin, end) of one row: y = act((v - shift) * factor * weight + bias) + residual.
template <class Out, class Residual>
struct Finish {
  const float* row;
  const float *weight, *bias;  // null: none
  const Residual* residual;    // null: none
  Out out;

  template <Activation activation>
  [[gnu::always_inline]] inline void run(std::int64_t begin, std::int64_t end, float shift, float factor) {
    Out to = out;
    std::int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      Vec v = (load(row + i) - shift) * factor;
      if (weight != nullptr) v *= load(weight + i);
      if (bias != nullptr) v += load(bias + i);
      v = activate<activation>(v);
      if (residual != nullptr) v += load(residual + i);
      to.put(i, v);
    }
    const std::int64_t left = end - i;
    if (left > 0) finish_part<activation>(to, i, left, shift, factor);
    out = to;
  }

  template <Activation activation>
  [[gnu::always_inline]] inline void finish_part(Out& to, std::int64_t i, std::int64_t left, float shift,
                                                 float factor) const {
    Vec v = (load_part(row + i, left) - shift) * factor;
    if (weight != nullptr) v *= load_part(weight + i, left);
    if (bias != nullptr) v += load_part(bias + i, left);
    v = activate<activation>(v);
    if (residual != nullptr) v += load_part(residual + i, left);
    to.put_part(i, v, left);
  }
};

template <Activation activation, class Out, class Residual>
void finish_row(Finish<Out, Residual>& finish, std::int64_t n, const Epilogue& e) {
  const auto reciprocal_root = [&](float sum_of_squares, std::int64_t count) {
    return 1.0f / __builtin_sqrtf(sum_of_squares / static_cast<float>(count) + e.eps);
  };
  const auto square = [](Vec v) { return v * v; };
  const float* row = finish.row;
  switch (e.norm) {
    case NormKind::none: finish.template run<activation>(0, n, 0.0f, 1.0f); return;
    case NormKind::layer: {
      const float mean = sum(row, n, [](Vec v) { return v; }) / static_cast<float>(n);
      const float squares = sum(row, n, [&](Vec v) { return square(v - mean); });
      finish.template run<activation>(0, n, mean, reciprocal_root(squares, n));
      return;
    }
    default: {
      const std::int64_t block = e.norm == NormKind::block ? e.norm_block : n;
      for (std::int64_t begin = 0; begin < n; begin += block) {
        const std::int64_t end = n - begin < block ? n : begin + block;
        const float squares = sum(row + begin, end - begin, square);
        finish.template run<activation>(begin, end, 0.0f, reciprocal_root(squares, end - begin));
      }
    }
  }
}

template <class Residual>
void add_residual(float* row, const Residual* residual, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(row + i, load(row + i) + load(residual + i));
  if (i < n) store_part(row + i, load_part(row + i, n - i) + load_part(residual + i, n - i), n - i);
}

struct Rows {
  float* data;
  std::int64_t stride, first, count;
};

// The bytes of y's row r, counted from row `first`.
std::size_t offset_of(const MatrixView& y, std::int64_t r) {
  return static_cast<std::size_t>(r * y.row_stride) * size_of(y.dtype);
}

template <class Out>
Numbers<Out> destination(Numbers<Out>, float*, void* y) {
  return {static_cast<Out*>(y)};
}
Quantized destination(Quantized, float* row, void*) { return {row}; }

template <class Out>
void deliver(const Numbers<Out>&, const MatrixView&, void*, float*, std::int64_t) {}
void deliver(const Quantized& row, const MatrixView& y, void* codes, float* scale, std::int64_t r) {
  std::int32_t largest = 0, widest = 0;
  for (int i = 0; i < kLanes; ++i) {
    largest = row.largest[i] > largest ? row.largest[i] : largest;
    widest = row.widest[i] > widest ? row.widest[i] : widest;
  }
  scale[r] = quantize_row(row.y, y.cols, {static_cast<std::uint32_t>(largest), widest > 0x7f800000}, y.dtype,
                          static_cast<std::uint8_t*>(codes));
}

template <Activation activation, class Out, class Residual>
void finish_all(const Rows& rows, const Epilogue& e, const MatrixView& y, float* y_scale) {
  const bool has_norm = e.norm != NormKind::none;
  for (std::int64_t r = 0; r < rows.count; ++r) {
    float* row = rows.data + r * rows.stride;
    const auto* residual = static_cast<const Residual*>(e.residual.data);
    if (residual != nullptr) residual += (rows.first + r) * e.residual.row_stride;
    if (residual != nullptr && e.residual_before_norm) {
      add_residual(row, residual, y.cols);
      residual = nullptr;
    }
    void* to = static_cast<char*>(y.data) + offset_of(y, rows.first + r);
    Finish<Out, Residual> finish{row, has_norm ? e.norm_weight : nullptr, has_norm ? e.norm_bias : nullptr, residual,
                                 destination(Out{}, row, to)};
    finish_row<activation>(finish, y.cols, e);
    deliver(finish.out, y, to, y_scale, rows.first + r);
  }
}

template <class Out, class Residual>
void dispatch_activation(const Rows& rows, const Epilogue& e, const MatrixView& y, float* y_scale) {
  switch (e.last_activation()) {
    case Activation::none: finish_all<Activation::none, Out, Residual>(rows, e, y, y_scale); break;
    case Activation::relu: finish_all<Activation::relu, Out, Residual>(rows, e, y, y_scale); break;
    case Activation::silu: finish_all<Activation::silu, Out, Residual>(rows, e, y, y_scale); break;
    case Activation::gelu: finish_all<Activation::gelu, Out, Residual>(rows, e, y, y_scale); break;
    case Activation::hardswish: finish_all<Activation::hardswish, Out, Residual>(rows, e, y, y_scale); break;
    case Activation::sigmoid: finish_all<Activation::sigmoid, Out, Residual>(rows, e, y, y_scale); break;
  }
}

template <class Out>
void dispatch_residual(const Rows& rows, const Epilogue& e, const MatrixView& y, float* y_scale) {
  if (e.residual.dtype == DType::bf16) {
    dispatch_activation<Out, std::uint16_t>(rows, e, y, y_scale);
  } else {
    dispatch_activation<Out, float>(rows, e, y, y_scale);
  }
}

}  // namespace

void finish_rows(float* rows, std::int64_t row_stride, std::int64_t first, std::int64_t count, const Epilogue& epilogue,
                 const MatrixView& y, float* y_scale) {
  const Rows view{rows, row_stride, first, count};
  if (y.dtype == DType::bf16) {
    dispatch_residual<Numbers<std::uint16_t>>(view, epilogue, y, y_scale);
  } else if (y.dtype == DType::f32) {
    dispatch_residual<Numbers<float>>(view, epilogue, y, y_scale);
  } else {
    dispatch_residual<Quantized>(view, epilogue, y, y_scale);
  }
}

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
