// Backward of embedding bags fused with the optimizer, plain C++: each touched row is read and written once.
// Compiled with -ffp-contract=off: codes follow the definition of their rounding.
#include <limits>

#include "cpu/bag_random.hpp"
#include "cpu/bag_runs.hpp"
#include "cpu/bag_update.hpp"
#include "octavo/float8.hpp"
#include "octavo/quantize.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kPrefetchRuns = 16;

struct Share {
  const BagBackwardArgs& args;
  const TableView& table;
  std::int64_t number;  // of the table
  float lr;             // step_size
  std::uint64_t random;

  char* row(std::uint64_t row) const {
    return static_cast<char*>(table.rows) +
           static_cast<std::int64_t>(row) * table.row_stride * static_cast<std::int64_t>(size_of(table.dtype));
  }
};

void decode_row(const TableView& table, const char* from, std::uint64_t row, float* __restrict x) {
  const std::int64_t dim = table.dim;
  const auto* halves = reinterpret_cast<const std::uint16_t*>(from);
  const auto* codes = reinterpret_cast<const std::uint8_t*>(from);
  switch (table.dtype) {
    case DType::bf16:
      for (std::int64_t c = 0; c < dim; ++c) x[c] = decode_bf16(halves[c]);
      return;
    case DType::f16:
      for (std::int64_t c = 0; c < dim; ++c) x[c] = decode_f16(halves[c]);
      return;
    case DType::e4m3:
      for (std::int64_t c = 0; c < dim; ++c) x[c] = decode_e4m3(codes[c]) * *table.scale_of(row);
      return;
    case DType::u4:
      for (std::int64_t c = 0; c < dim; ++c) x[c] = static_cast<float>(codes[c / 2] >> c % 2 * 4 & 15);
      break;
    default:
      for (std::int64_t c = 0; c < dim; ++c) x[c] = static_cast<float>(codes[c]);
      break;
  }
  const float scale = *table.scale_of(row), bias = table.scale_of(row)[1];
  for (std::int64_t c = 0; c < dim; ++c) x[c] = x[c] * scale + bias;
}

void encode_bf16_row(const float* x, std::int64_t dim, bool stochastic, RandomRow random, std::uint16_t* codes) {
  for (std::int64_t c = 0; c < dim; ++c)
    codes[c] = stochastic ? encode_bf16_stochastic(x[c], random_bits(random, static_cast<std::uint32_t>(c)))
                          : encode_bf16(x[c]);
}

void encode_f16_row(const float* x, std::int64_t dim, bool stochastic, RandomRow random, std::uint16_t* codes) {
  for (std::int64_t c = 0; c < dim; ++c)
    codes[c] =
        stochastic ? encode_f16_stochastic(x[c], random_bits(random, static_cast<std::uint32_t>(c))) : encode_f16(x[c]);
}

void encode_e4m3_row(const float* x, std::int64_t dim, bool stochastic, RandomRow random, std::uint8_t* codes,
                     float& scale) {
  float largest = 0;
  for (std::int64_t c = 0; c < dim; ++c)
    if (const float magnitude = std::fabs(x[c]); magnitude <= std::numeric_limits<float>::max())
      largest = magnitude > largest ? magnitude : largest;
  const ScalePair pair = scale_for(largest, DType::e4m3, false);
  scale = pair.scale;
  for (std::int64_t c = 0; c < dim; ++c) {
    const float y = x[c] * pair.multiplier;
    codes[c] =
        stochastic ? encode_e4m3_stochastic(y, random_bits(random, static_cast<std::uint32_t>(c))) : encode_e4m3(y);
  }
}

// Codes from 0 to `largest`: a byte each, or (15) two a byte.
template <std::uint32_t largest>
void encode_affine_row(const float* x, std::int64_t dim, bool stochastic, RandomRow random, std::uint8_t* codes,
                       float* scale) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity(), kLargest = static_cast<float>(largest);
  float low = kInfinity, high = -kInfinity;
  bool nan = false;
  for (std::int64_t c = 0; c < dim; ++c) {
    nan |= x[c] != x[c];
    if (!(std::fabs(x[c]) <= std::numeric_limits<float>::max())) continue;
    low = x[c] < low ? x[c] : low;
    high = x[c] > high ? x[c] : high;
  }
  const AffineScale affine = affine_scale(low, high, kLargest);
  scale[0] = nan ? std::numeric_limits<float>::quiet_NaN() : affine.scale;  // no code for NaN
  scale[1] = affine.bias;
  const auto code = [&](std::int64_t c) {
    const float clamped = x[c] > low ? x[c] < high ? x[c] : high : low;  // infinities saturate
    const float y = (clamped - affine.bias) * affine.multiplier;
    const float inside = y > 0 ? y < kLargest ? y : kLargest : 0.0f;  // nothing finite: NaN
    return stochastic ? encode_unsigned_stochastic(inside, largest, random_bits(random, static_cast<std::uint32_t>(c)))
                      : static_cast<std::uint8_t>(std::nearbyint(inside));
  };
  if constexpr (largest == 255) {
    for (std::int64_t c = 0; c < dim; ++c) codes[c] = code(c);
  } else {
    for (std::int64_t c = 0; c < dim; c += 2)
      codes[c / 2] = static_cast<std::uint8_t>(code(c) | (c + 1 < dim ? code(c + 1) << 4 : 0));
  }
}

void encode_row(const Share& share, const float* x, std::uint64_t row, char* to) {
  const TableView& table = share.table;
  const bool stochastic = share.args.optimizer.rounding == Rounding::stochastic;
  const RandomRow random = random_row(share.random, row);
  auto* halves = reinterpret_cast<std::uint16_t*>(to);
  auto* codes = reinterpret_cast<std::uint8_t*>(to);
  switch (table.dtype) {
    case DType::bf16: return encode_bf16_row(x, table.dim, stochastic, random, halves);
    case DType::f16: return encode_f16_row(x, table.dim, stochastic, random, halves);
    case DType::e4m3: return encode_e4m3_row(x, table.dim, stochastic, random, codes, *table.scale_of(row));
    case DType::u4: return encode_affine_row<15>(x, table.dim, stochastic, random, codes, table.scale_of(row));
    default: return encode_affine_row<255>(x, table.dim, stochastic, random, codes, table.scale_of(row));
  }
}

float mean_square(const float* g, std::int64_t dim) {
  float squares[8] = {};
  std::int64_t c = 0;
  for (; c + 8 <= dim; c += 8)
    for (int i = 0; i < 8; ++i) squares[i] += g[c + i] * g[c + i];
  for (; c < dim; ++c) squares[c & 7] += g[c] * g[c];
  const float sum =
      ((squares[0] + squares[4]) + (squares[2] + squares[6])) + ((squares[1] + squares[5]) + (squares[3] + squares[7]));
  return sum / static_cast<float>(dim);
}

// One step on x, its state and its gradient.
void update(const Share& share, std::uint64_t row, float* __restrict x, float* __restrict g) {
  const OptimizerConfig& optimizer = share.args.optimizer;
  const std::int64_t dim = share.table.dim;
  const float lr = share.lr, eps = optimizer.eps;
  float* __restrict state = share.table.optimizer_state + row * state_width(optimizer.kind, dim);
  if (optimizer.weight_decay != 0.0f)
    for (std::int64_t c = 0; c < dim; ++c) g[c] += optimizer.weight_decay * x[c];
  switch (optimizer.kind) {
    case Optimizer::none: break;
    case Optimizer::sgd:
      for (std::int64_t c = 0; c < dim; ++c) x[c] -= lr * g[c];
      break;
    case Optimizer::row_wise_adagrad: {
      *state += mean_square(g, dim);
      const float step = lr / (std::sqrt(*state) + eps);
      for (std::int64_t c = 0; c < dim; ++c) x[c] -= step * g[c];
      break;
    }
    case Optimizer::adagrad:
      for (std::int64_t c = 0; c < dim; ++c) {
        state[c] += g[c] * g[c];
        x[c] -= lr * g[c] / (std::sqrt(state[c]) + eps);
      }
      break;
    case Optimizer::adam: {
      float* __restrict m = state;
      float* __restrict v = state + dim;
      const float fresh1 = 1.0f - optimizer.beta1, fresh2 = 1.0f - optimizer.beta2;
      for (std::int64_t c = 0; c < dim; ++c) {
        m[c] += fresh1 * (g[c] - m[c]);
        v[c] += fresh2 * (g[c] * g[c] - v[c]);
        x[c] -= lr * m[c] / (std::sqrt(v[c]) + eps);
      }
      break;
    }
  }
}

void run_share(const BagBackwardArgs& args, const BagShare& bag_share, bool check) {
  const TableView& table = args.tables[bag_share.table];
  const Share share{args, table, bag_share.table, step_size(args.optimizer),
                    random_table(args.optimizer, bag_share.table)};
  const std::int64_t dim = table.dim;
  const RowRuns runs = runs_of(args, bag_share, check);
  const Gradients gradients = gradients_of(args, bag_share, runs);
  auto* sum = static_cast<float*>(scratch(kRowScratch, static_cast<std::size_t>(2 * dim) * sizeof(float)));
  float* decoded = sum + dim;
  for (std::int64_t r = 0; r < runs.size; ++r) {
    if (r + kPrefetchRuns < runs.size) prefetch_row(table, args.optimizer.kind, runs.runs[r + kPrefetchRuns].row);
    const std::uint64_t row = runs.runs[r].row;
    char* stored = share.row(row);
    float* x = table.dtype == DType::f32 ? reinterpret_cast<float*>(stored) : decoded;
    if (x == decoded) decode_row(table, stored, row, decoded);
    for (std::int64_t c = 0; c < dim; ++c) sum[c] = 0;
    for (std::uint32_t i = runs.runs[r].begin; i < runs.runs[r + 1].begin; ++i) {
      const std::uint32_t payload = runs.payload[i];
      const Lookup lookup =
          runs.lookups != nullptr ? runs.lookups[payload] : Lookup{1.0f, static_cast<std::int32_t>(payload)};
      const float* __restrict g = gradients.data + lookup.bag * gradients.stride;
      for (std::int64_t c = 0; c < dim; ++c) sum[c] += lookup.coefficient * g[c];
      if (args.grad_weights != nullptr) {
        float dot = 0;
        for (std::int64_t c = 0; c < dim; ++c) dot += g[c] * x[c];
        args.grad_weights[runs.first_value + payload] =
            runs.inverse_count != nullptr ? dot * runs.inverse_count[lookup.bag] : dot;
      }
    }
    if (args.optimizer.kind == Optimizer::none || dim == 0) continue;
    update(share, row, x, sum);
    if (x == decoded) encode_row(share, x, row, stored);
  }
}

}  // namespace

Status bag_backward(const BagBackwardArgs& args) {
  std::int64_t skipped;
  if (Status status = validate(args, skipped); !status.ok()) return status;
  for_each_share(args, [&](const BagShare& share) { run_share(args, share, skipped != 0); });
  return {};
}

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
