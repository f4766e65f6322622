#include "linear_case.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

namespace octavo::testing {
namespace {

constexpr float kCanary = 12345.0f;  // what y holds before a run

std::uint8_t int8_code(float v) {
  const float clamped = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v == v ? v : 0.0f;
  return static_cast<std::uint8_t>(static_cast<std::int8_t>(std::nearbyint(clamped)));
}

ScalePair row_scale(const std::vector<float>& row, DType format) {
  float largest = 0.0f;
  bool nan = false;
  for (const float v : row) {
    if (std::isfinite(v)) largest = std::max(largest, std::fabs(v));
    nan = nan || std::isnan(v);
  }
  ScalePair pair = scale_for(largest, format, false);
  if (format == DType::i8 && nan) pair.scale = std::numeric_limits<float>::quiet_NaN();
  return pair;
}

double activate(double v, Activation activation) {
  switch (activation) {
    case Activation::relu: return v < 0 ? 0 : v;
    case Activation::silu: return v / (1 + std::exp(-v));
    case Activation::gelu: return 0.5 * v * std::erfc(-v / std::sqrt(2.0));
    case Activation::hardswish: return v * std::clamp(v + 3, 0.0, 6.0) / 6;
    case Activation::sigmoid: return 1 / (1 + std::exp(-v));
    default: return v;
  }
}

}  // namespace

LinearCase::LinearCase(const LinearSpec& s, Numerics numerics_of_kernel)
    : spec(s),
      numerics(numerics_of_kernel),
      x(s.x, s.m, s.k, s.padding),
      y(s.y, s.m, s.n, s.padding),
      residual(s.residual_dtype, s.residual == ResidualUse::none ? 0 : s.m, s.n, s.padding) {
  std::mt19937 random(static_cast<unsigned>(s.m * 7919 + s.n * 31 + s.k));
  std::normal_distribution<float> normal;
  for (std::int64_t r = 0; r < s.m; ++r) {
    const float size = std::exp2(static_cast<float>(r % 5 - 2));
    for (std::int64_t c = 0; c < s.k; ++c) x.set(r, c, size * normal(random));
  }
  for (std::int64_t r = 0; r < residual.rows; ++r)
    for (std::int64_t c = 0; c < s.n; ++c) residual.set(r, c, normal(random));
  for (std::int64_t r = 0; r < s.m; ++r)
    for (std::int64_t c = 0; c < y.stride; ++c) y.set(r, c, kCanary);

  std::vector<float> values(static_cast<std::size_t>(s.n * s.k));
  for (float& v : values) v = normal(random) / std::sqrt(static_cast<float>(s.k));
  encode_weight(values, weight_tile());
  const auto vector = [&](bool present, float mean, float deviation) {
    std::vector<float> values(present ? static_cast<std::size_t>(s.n) : 0);
    for (float& v : values) v = mean + deviation * normal(random);
    return values;
  };
  bias = vector(s.bias, s.offset, 1.0f);
  const bool affine = s.norm_vectors && s.norm != NormKind::none && s.norm != NormKind::block;
  norm_weight = vector(affine, 1.0f, 0.1f);
  norm_bias = vector(affine && s.norm == NormKind::layer, 0.0f, 0.1f);
  weight.emplace(codes.data(), scale.empty() ? nullptr : scale.data(), s.n, s.k, weight_format(numerics),
                 weight_scaling(numerics));
}

ScaleTile LinearCase::weight_tile() const {
  if (numerics == Numerics::e4m3_block) return {kScaleBlock, kScaleBlock};
  return {1, std::max<std::int64_t>(spec.k, 1)};
}

void LinearCase::encode_weight(const std::vector<float>& values, ScaleTile tile) {
  const DType format = weight_format(numerics);
  codes.resize(values.size() * size_of(format));
  std::vector<float> part;
  for (std::int64_t top = 0; top < spec.n; top += tile.rows)
    for (std::int64_t left = 0; left == 0 || left < spec.k; left += tile.cols) {
      const auto each = [&](auto visit) {
        for (std::int64_t r = top; r < std::min(spec.n, top + tile.rows); ++r)
          for (std::int64_t c = left; c < std::min(spec.k, left + tile.cols); ++c)
            visit(static_cast<std::size_t>(r * spec.k + c));
      };
      part.clear();
      each([&](std::size_t at) { part.push_back(values[at]); });
      const ScalePair pair = format == DType::bf16 ? ScalePair{1.0f, 1.0f} : row_scale(part, format);
      if (format != DType::bf16) scale.push_back(pair.scale);
      each([&](std::size_t at) {
        const float v = values[at] * pair.multiplier;
        if (format == DType::bf16) {
          const std::uint16_t bits = encode_bf16(v);
          std::memcpy(&codes[at * 2], &bits, 2);
        } else {
          codes[at] = format == DType::e4m3 ? encode_e4m3(v) : int8_code(v);
        }
      });
    }
  if (format != DType::bf16) scale.push_back(0.0f);  // never empty
}

LinearArgs LinearCase::args() {
  const auto pointer = [](const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); };
  LinearArgs a;
  a.x = x.view();
  a.weight = &*weight;
  a.y = y.view();
  a.epilogue.bias = pointer(bias);
  a.epilogue.norm = spec.norm;
  a.epilogue.norm_weight = pointer(norm_weight);
  a.epilogue.norm_bias = pointer(norm_bias);
  a.epilogue.norm_block = spec.norm_block;
  a.epilogue.activation = spec.activation;
  if (spec.residual != ResidualUse::none) a.epilogue.residual = residual.view();
  a.epilogue.residual_before_norm = spec.residual == ResidualUse::before_norm;
  return a;
}

Status LinearCase::run(const KernelInfo& kernel) { return kernel.run.linear(args()); }

std::vector<double> LinearCase::operand(std::int64_t r) const {
  std::vector<double> out;
  const DType format = weight_format(numerics);
  const bool scaled = numerics != Numerics::bf16 && numerics != Numerics::e4m3_weight_only;
  const std::int64_t width = weight_tile().cols;
  for (std::int64_t left = 0; left < spec.k; left += width) {
    std::vector<float> row;
    for (std::int64_t c = left; c < std::min(spec.k, left + width); ++c) row.push_back(x.get(r, c));
    const ScalePair pair = scaled ? row_scale(row, format) : ScalePair{1.0f, 1.0f};
    for (const float v : row) {
      if (!scaled) {
        out.push_back(decode_bf16(encode_bf16(v)));
      } else if (format == DType::e4m3) {
        out.push_back(static_cast<double>(pair.scale) * decode_e4m3(encode_e4m3(v * pair.multiplier)));
      } else {
        out.push_back(static_cast<double>(pair.scale) * static_cast<std::int8_t>(int8_code(v * pair.multiplier)));
      }
    }
  }
  return out;
}

std::vector<double> LinearCase::weights() const {
  std::vector<double> out(static_cast<std::size_t>(spec.n * spec.k));
  const ScaleTile tile = weight_tile();
  const std::int64_t across = (spec.k + tile.cols - 1) / tile.cols;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i) / spec.k, column = static_cast<std::int64_t>(i) % spec.k;
    const double s =
        scale.empty() ? 1.0 : scale[static_cast<std::size_t>(row / tile.rows * across + column / tile.cols)];
    std::uint16_t bits = 0;
    if (scale.empty()) std::memcpy(&bits, &codes[i * 2], 2);
    out[i] = s * (scale.empty()                            ? decode_bf16(bits)
                  : weight_format(numerics) == DType::e4m3 ? decode_e4m3(codes[i])
                                                           : static_cast<float>(static_cast<std::int8_t>(codes[i])));
  }
  return out;
}

std::vector<double> LinearCase::reference() const {
  const std::vector<double> w = weights();
  std::vector<double> out;
  for (std::int64_t r = 0; r < spec.m; ++r) {
    const std::vector<double> a = operand(r);
    std::vector<double> z(static_cast<std::size_t>(spec.n));
    for (std::size_t c = 0; c < z.size(); ++c) {
      for (std::size_t j = 0; j < a.size(); ++j) z[c] += a[j] * w[c * a.size() + j];
      if (!bias.empty()) z[c] += bias[c];
      if (spec.residual == ResidualUse::before_norm) z[c] += residual.get(r, static_cast<std::int64_t>(c));
    }
    const std::size_t n = z.size();
    const std::size_t block = spec.norm == NormKind::block ? static_cast<std::size_t>(spec.norm_block) : n;
    if (spec.norm != NormKind::none)
      for (std::size_t begin = 0; begin < n; begin += block) {
        const std::size_t end = std::min(n, begin + block);
        const double count = static_cast<double>(end - begin);
        double mean = 0, squares = 0;
        if (spec.norm == NormKind::layer)
          for (std::size_t c = begin; c < end; ++c) mean += z[c] / count;
        for (std::size_t c = begin; c < end; ++c) squares += (z[c] - mean) * (z[c] - mean) / count;
        for (std::size_t c = begin; c < end; ++c) z[c] = (z[c] - mean) / std::sqrt(squares + 1e-5f);
      }
    for (std::size_t c = 0; c < n; ++c) {
      if (!norm_weight.empty()) z[c] *= norm_weight[c];
      if (!norm_bias.empty()) z[c] += norm_bias[c];
      z[c] = activate(z[c], spec.norm == NormKind::swish_rms ? Activation::silu : spec.activation);
      if (spec.residual == ResidualUse::after) z[c] += residual.get(r, static_cast<std::int64_t>(c));
    }
    out.insert(out.end(), z.begin(), z.end());
  }
  return out;
}

double LinearCase::error() const {
  const std::vector<double> ref = reference();
  double largest = 1e-30, worst = 0.0;
  for (const double v : ref)
    if (std::isfinite(v)) largest = std::max(largest, std::fabs(v));
  for (std::int64_t r = 0; r < spec.m; ++r)
    for (std::int64_t c = 0; c < spec.n; ++c) {
      const double got = y.get(r, c), want = ref[static_cast<std::size_t>(r * spec.n + c)];
      if (std::isfinite(want) && std::isfinite(got)) {
        worst = std::max(worst, std::fabs(got - want) / largest);
      } else if (!(std::isnan(want) && std::isnan(got)) && got != want) {
        worst = std::numeric_limits<double>::infinity();
      }
    }
  return worst;
}

bool LinearCase::padding_untouched() const {
  const float canary = spec.y == DType::f32 ? kCanary : decode_bf16(encode_bf16(kCanary));
  for (std::int64_t r = 0; r < spec.m; ++r)
    for (std::int64_t c = spec.n; c < y.stride; ++c)
      if (y.get(r, c) != canary) return false;
  return true;
}

}  // namespace octavo::testing
