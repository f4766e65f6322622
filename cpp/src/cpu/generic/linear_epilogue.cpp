#include "cpu/generic/linear_epilogue.hpp"

#include "cpu/generic/linear_vector.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

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

// What becomes of the columns [begin, end) of one row: y = act((v - shift) * factor * weight + bias) + residual.
template <class Out, class Residual>
struct Finish {
  const float* row;
  const float *weight, *bias;  // null: none
  const Residual* residual;    // null: none
  Out* y;

  template <Activation activation>
  [[gnu::always_inline]] inline void run(std::int64_t begin, std::int64_t end, float shift, float factor) const {
    std::int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      Vec v = (load(row + i) - shift) * factor;
      if (weight != nullptr) v *= load(weight + i);
      if (bias != nullptr) v += load(bias + i);
      v = activate<activation>(v);
      if (residual != nullptr) v += load(residual + i);
      store(y + i, v);
    }
    if (i == end) return;
    const std::int64_t left = end - i;
    Vec v = (load_part(row + i, left) - shift) * factor;
    if (weight != nullptr) v *= load_part(weight + i, left);
    if (bias != nullptr) v += load_part(bias + i, left);
    v = activate<activation>(v);
    if (residual != nullptr) v += load_part(residual + i, left);
    store_part(y + i, v, left);
  }
};

template <Activation activation, class Out, class Residual>
void finish_row(const Finish<Out, Residual>& finish, std::int64_t n, const Epilogue& e) {
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
      const std::int64_t block = e.norm == NormKind::rms ? n : e.norm_block;
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

template <class Out>
void copy_row(const float* row, Out* out, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(row + i));
  if (i < n) store_part(out + i, load_part(row + i, n - i), n - i);
}

struct Rows {
  float* data;
  std::int64_t stride, first, count;
};

template <Activation activation, class Out, class Residual>
void finish_all(const Rows& rows, const Epilogue& e, const MatrixView& y) {
  const bool has_norm = e.norm != NormKind::none;
  for (std::int64_t r = 0; r < rows.count; ++r) {
    float* row = rows.data + r * rows.stride;
    const auto* residual = static_cast<const Residual*>(e.residual.data);
    if (residual != nullptr) residual += (rows.first + r) * e.residual.row_stride;
    if (residual != nullptr && e.residual_before_norm) {
      add_residual(row, residual, y.cols);
      residual = nullptr;
    }
    if (e.saved.data != nullptr)
      copy_row(row, static_cast<Out*>(e.saved.data) + (rows.first + r) * e.saved.row_stride, y.cols);
    Out* out = static_cast<Out*>(y.data) + (rows.first + r) * y.row_stride;
    finish_row<activation>(
        Finish<Out, Residual>{row, has_norm ? e.norm_weight : nullptr, has_norm ? e.norm_bias : nullptr, residual, out},
        y.cols, e);
  }
}

template <class Out, class Residual>
void dispatch_activation(const Rows& rows, const Epilogue& e, const MatrixView& y) {
  switch (e.activation) {
    case Activation::none: finish_all<Activation::none, Out, Residual>(rows, e, y); break;
    case Activation::relu: finish_all<Activation::relu, Out, Residual>(rows, e, y); break;
    case Activation::silu: finish_all<Activation::silu, Out, Residual>(rows, e, y); break;
    case Activation::gelu: finish_all<Activation::gelu, Out, Residual>(rows, e, y); break;
    case Activation::hardswish: finish_all<Activation::hardswish, Out, Residual>(rows, e, y); break;
    case Activation::sigmoid: finish_all<Activation::sigmoid, Out, Residual>(rows, e, y); break;
  }
}

template <class Out>
void dispatch_residual(const Rows& rows, const Epilogue& e, const MatrixView& y) {
  if (e.residual.dtype == DType::bf16) {
    dispatch_activation<Out, std::uint16_t>(rows, e, y);
  } else {
    dispatch_activation<Out, float>(rows, e, y);
  }
}

}  // namespace

void finish_rows(float* rows, std::int64_t row_stride, std::int64_t first, std::int64_t count, const Epilogue& epilogue,
                 const MatrixView& y) {
  const Rows view{rows, row_stride, first, count};
  if (y.dtype == DType::bf16) {
    dispatch_residual<std::uint16_t>(view, epilogue, y);
  } else {
    dispatch_residual<float>(view, epilogue, y);
  }
}

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
