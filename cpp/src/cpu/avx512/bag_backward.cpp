// Backward of embedding bags fused with the optimizer. FP32 rows of up to 128 columns with SGD or row-wise Adagrad: the
// gradient of a row stays in registers until the row is written. Everything else goes through a row of scratch in L1.
#include "cpu/avx512/bag_row_codes.hpp"
#include "cpu/bag_runs.hpp"

namespace octavo::avx512_kernels {
namespace {

constexpr std::int64_t kPrefetchRuns = 32;
constexpr int kMaxVectors = 8;  // 128 columns in registers

struct F32Row {};

// One share of a table on its way.
struct Work {
  const BagBackwardArgs& args;
  const TableView& table;
  const RowRuns runs;
  const Gradients gradients;
  float lr;              // step_size
  std::uint64_t random;  // random_table
};

[[gnu::always_inline]] inline __mmask16 tail_mask(std::int64_t dim) {
  return static_cast<__mmask16>(0xffffu >> ((16 - dim % 16) % 16));
}

// Sum over lookups [begin, end) of the run of columns [first, first + 16 * vectors), those of the last vector masked.
template <int vectors, bool by_lookup>
[[gnu::always_inline]] inline void sum_gradients(const Work& work, std::uint32_t begin, std::uint32_t end,
                                                 std::int64_t first, __mmask16 tail, __m512* sum) {
  const float* data = work.gradients.data + first;
  const std::int64_t stride = work.gradients.stride;
  const auto column = [&](const float* g, int i) {
    return i + 1 < vectors ? _mm512_loadu_ps(g + 16 * i) : _mm512_maskz_loadu_ps(tail, g + 16 * i);
  };
  const std::uint32_t* payload = work.runs.payload;
  if constexpr (by_lookup) {
    const Lookup lookup = work.runs.lookups[payload[begin]];
    const __m512 coefficient = _mm512_set1_ps(lookup.coefficient);
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) sum[i] = _mm512_mul_ps(column(data + lookup.bag * stride, i), coefficient);
  } else {
    const float* g = data + static_cast<std::int64_t>(payload[begin]) * stride;
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) sum[i] = column(g, i);
  }
  for (std::uint32_t at = begin + 1; at < end; ++at) {
    if constexpr (by_lookup) {
      const Lookup lookup = work.runs.lookups[payload[at]];
      const __m512 coefficient = _mm512_set1_ps(lookup.coefficient);
#pragma GCC unroll 8
      for (int i = 0; i < vectors; ++i)
        sum[i] = _mm512_fmadd_ps(column(data + lookup.bag * stride, i), coefficient, sum[i]);
    } else {
      const float* g = data + static_cast<std::int64_t>(payload[at]) * stride;
#pragma GCC unroll 8
      for (int i = 0; i < vectors; ++i) sum[i] = _mm512_add_ps(sum[i], column(g, i));
    }
  }
}

// --- FP32 rows in registers
// --------------------------------------------------------------------------------------------
template <int vectors, bool by_lookup, bool adagrad>
void run_in_registers(const Work& work) {
  const TableView& table = work.table;
  const RowRuns& runs = work.runs;
  float* const rows = static_cast<float*>(table.rows);
  float* const states = table.optimizer_state;
  const std::int64_t stride = table.row_stride, dim = table.dim;
  const __mmask16 tail = tail_mask(dim);
  const bool straddles = stride * 4 % 64 != 0 || reinterpret_cast<std::uintptr_t>(rows) % 64 != 0;
  const float lr = work.lr, eps = work.args.optimizer.eps, decay = work.args.optimizer.weight_decay;
  const auto fetch = [&](std::int64_t row) __attribute__((always_inline)) {
    const float* x = rows + row * stride;
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) __builtin_prefetch(x + 16 * i, 0, 3);
    if (straddles) __builtin_prefetch(x + dim - 1, 0, 3);
    if (adagrad) __builtin_prefetch(states + row, 0, 3);
  };
  const std::int64_t last = runs.size - 1;
  for (std::int64_t r = 0; r <= last && r < kPrefetchRuns; ++r) fetch(runs.runs[r].row);
  for (std::int64_t r = 0; r <= last; ++r) {
    fetch(runs.runs[r + kPrefetchRuns < last ? r + kPrefetchRuns : last].row);
    const std::int64_t row = runs.runs[r].row;
    float* x = rows + row * stride;
    __m512 g[vectors];
    sum_gradients<vectors, by_lookup>(work, runs.runs[r].begin, runs.runs[r + 1].begin, 0, tail, g);
    __m512 value[vectors];
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i)
      value[i] = i + 1 < vectors ? _mm512_loadu_ps(x + 16 * i) : _mm512_maskz_loadu_ps(tail, x + 16 * i);
    if (decay != 0.0f) {
#pragma GCC unroll 8
      for (int i = 0; i < vectors; ++i) g[i] = _mm512_fmadd_ps(_mm512_set1_ps(decay), value[i], g[i]);
    }
    float step = lr;
    if constexpr (adagrad) {
      __m512 squares = _mm512_mul_ps(g[0], g[0]);
#pragma GCC unroll 8
      for (int i = 1; i < vectors; ++i) squares = _mm512_fmadd_ps(g[i], g[i], squares);
      const float state = states[row] + _mm512_reduce_add_ps(squares) / static_cast<float>(dim);
      states[row] = state;
      step = lr / (std::sqrt(state) + eps);
    }
    const __m512 s = _mm512_set1_ps(step);
#pragma GCC unroll 8
    for (int i = 0; i + 1 < vectors; ++i) _mm512_storeu_ps(x + 16 * i, _mm512_fnmadd_ps(s, g[i], value[i]));
    constexpr int z = vectors - 1;
    const __m512 end = _mm512_fnmadd_ps(s, g[z], value[z]);
    if (tail == 0xffff)
      _mm512_storeu_ps(x + 16 * z, end);
    else
      _mm512_mask_storeu_ps(x + 16 * z, tail, end);
  }
}

// --- Any row, any optimizer
// -------------------------------------------------------------------------------------------- The optimizer's step on
// x [dim] with gradient g.
[[gnu::always_inline]] inline void update(const Work& work, std::int64_t row, float* x, float* g) {
  const OptimizerConfig& optimizer = work.args.optimizer;
  const std::int64_t dim = work.table.dim;
  const __m512 lr = _mm512_set1_ps(work.lr), eps = _mm512_set1_ps(optimizer.eps);
  float* state = work.table.optimizer_state + row * state_width(optimizer.kind, dim);
  if (optimizer.weight_decay != 0.0f) {
    const __m512 decay = _mm512_set1_ps(optimizer.weight_decay);
    for_columns(dim, [&](std::int64_t c, __mmask16 mask) {
      _mm512_storeu_ps(g + c, _mm512_fmadd_ps(decay, load(x + c, mask), _mm512_loadu_ps(g + c)));
    });
  }
  switch (optimizer.kind) {
    case Optimizer::none: break;
    case Optimizer::sgd:
      for_columns(dim, [&](std::int64_t c, __mmask16 mask) {
        store(x + c, mask, _mm512_fnmadd_ps(lr, _mm512_loadu_ps(g + c), load(x + c, mask)));
      });
      break;
    case Optimizer::row_wise_adagrad: {
      __m512 squares = _mm512_setzero_ps();
      for_columns(dim, [&](std::int64_t c, __mmask16) {
        squares = _mm512_fmadd_ps(_mm512_loadu_ps(g + c), _mm512_loadu_ps(g + c), squares);
      });
      *state += _mm512_reduce_add_ps(squares) / static_cast<float>(dim);
      const __m512 step = _mm512_set1_ps(work.lr / (std::sqrt(*state) + optimizer.eps));
      for_columns(dim, [&](std::int64_t c, __mmask16 mask) {
        store(x + c, mask, _mm512_fnmadd_ps(step, _mm512_loadu_ps(g + c), load(x + c, mask)));
      });
      break;
    }
    case Optimizer::adagrad:
      for_columns(dim, [&](std::int64_t c, __mmask16 mask) {
        const __m512 gradient = _mm512_loadu_ps(g + c);
        const __m512 sum = _mm512_fmadd_ps(gradient, gradient, load(state + c, mask));
        store(state + c, mask, sum);
        const __m512 root = _mm512_add_ps(_mm512_sqrt_ps(sum), eps);
        const __m512 step = _mm512_div_ps(_mm512_mul_ps(lr, gradient), root);
        store(x + c, mask, _mm512_sub_ps(load(x + c, mask), step));
      });
      break;
    case Optimizer::adam: {
      const __m512 fresh1 = _mm512_set1_ps(1.0f - optimizer.beta1), fresh2 = _mm512_set1_ps(1.0f - optimizer.beta2);
      for_columns(dim, [&](std::int64_t c, __mmask16 mask) {
        const __m512 gradient = _mm512_loadu_ps(g + c), m = load(state + c, mask), v = load(state + dim + c, mask);
        const __m512 new_m = _mm512_fmadd_ps(fresh1, _mm512_sub_ps(gradient, m), m);
        const __m512 new_v = _mm512_fmadd_ps(fresh2, _mm512_fmsub_ps(gradient, gradient, v), v);
        store(state + c, mask, new_m);
        store(state + dim + c, mask, new_v);
        const __m512 root = _mm512_add_ps(_mm512_sqrt_ps(new_v), eps);
        store(x + c, mask, _mm512_sub_ps(load(x + c, mask), _mm512_div_ps(_mm512_mul_ps(lr, new_m), root)));
      });
      break;
    }
  }
}

// Gradients of the weights of a run's lookups: grad_out . row, over the bag's count for means.
void weight_gradients(const Work& work, std::uint32_t begin, std::uint32_t end, const float* x) {
  for (std::uint32_t at = begin; at < end; ++at) {
    const std::uint32_t payload = work.runs.payload[at];
    const Lookup lookup = work.runs.lookups[payload];
    const float* g = work.gradients.data + lookup.bag * work.gradients.stride;
    __m512 products = _mm512_setzero_ps();
    for_columns(work.table.dim, [&](std::int64_t c, __mmask16 mask) {
      products = _mm512_fmadd_ps(load(g + c, mask), load(x + c, mask), products);
    });
    const float dot = _mm512_reduce_add_ps(products);
    const float* inverse = work.runs.inverse_count;
    work.args.grad_weights[work.runs.first_value + payload] = inverse != nullptr ? dot * inverse[lookup.bag] : dot;
  }
}

// The gradient of a run into g, 128 columns at a time and the last `vectors` vectors.
template <int vectors, bool by_lookup>
[[gnu::always_inline]] inline void sum_row(const Work& work, std::uint32_t begin, std::uint32_t end, float* g) {
  const std::int64_t dim = work.table.dim, last = (dim - 1) / (16 * kMaxVectors) * (16 * kMaxVectors);
  for (std::int64_t first = 0; first < last; first += 16 * kMaxVectors) {
    __m512 sum[kMaxVectors];
    sum_gradients<kMaxVectors, by_lookup>(work, begin, end, first, 0xffff, sum);
#pragma GCC unroll 8
    for (int i = 0; i < kMaxVectors; ++i) _mm512_storeu_ps(g + first + 16 * i, sum[i]);
  }
  __m512 sum[vectors];
  sum_gradients<vectors, by_lookup>(work, begin, end, last, tail_mask(dim), sum);
#pragma GCC unroll 8
  for (int i = 0; i < vectors; ++i) _mm512_storeu_ps(g + last + 16 * i, sum[i]);
}

template <class Row, int vectors>
void run_in_scratch(const Work& work) {
  constexpr bool in_place = std::is_same_v<Row, F32Row>;
  const TableView& table = work.table;
  const OptimizerConfig& optimizer = work.args.optimizer;
  const RowRuns& runs = work.runs;
  const std::int64_t dim = table.dim, padded = (dim + 15) / 16 * 16;
  const std::int64_t row_bytes = table.row_stride * static_cast<std::int64_t>(size_of(table.dtype));
  auto* g = static_cast<float*>(scratch(kRowScratch, static_cast<std::size_t>(2 * padded) * sizeof(float)));
  for (std::int64_t r = 0; r < runs.size; ++r) {
    if (r + kPrefetchRuns < runs.size) prefetch_row(table, optimizer.kind, runs.runs[r + kPrefetchRuns].row);
    const std::int64_t row = runs.runs[r].row;
    const std::uint32_t begin = runs.runs[r].begin, end = runs.runs[r + 1].begin;
    void* stored = static_cast<char*>(table.rows) + row * row_bytes;
    float* x = in_place ? static_cast<float*>(stored) : g + padded;
    if constexpr (!in_place) Row::decode(table, static_cast<std::uint64_t>(row), stored, dim, x);
    if (work.args.grad_weights != nullptr) weight_gradients(work, begin, end, x);
    if (optimizer.kind == Optimizer::none) continue;
    runs.lookups != nullptr ? sum_row<vectors, true>(work, begin, end, g)
                            : sum_row<vectors, false>(work, begin, end, g);
    update(work, row, x, g);
    if constexpr (!in_place) {
      const RandomRow random = random_row(work.random, static_cast<std::uint64_t>(row));
      optimizer.rounding == Rounding::stochastic
          ? Row::template encode<true>(table, static_cast<std::uint64_t>(row), stored, dim, x, random)
          : Row::template encode<false>(table, static_cast<std::uint64_t>(row), stored, dim, x, random);
    }
  }
}

using Runner = void (*)(const Work&);

template <bool by_lookup, bool adagrad>
Runner in_registers(int vectors) {
  static constexpr Runner kRunners[] = {
      run_in_registers<1, by_lookup, adagrad>, run_in_registers<2, by_lookup, adagrad>,
      run_in_registers<3, by_lookup, adagrad>, run_in_registers<4, by_lookup, adagrad>,
      run_in_registers<5, by_lookup, adagrad>, run_in_registers<6, by_lookup, adagrad>,
      run_in_registers<7, by_lookup, adagrad>, run_in_registers<8, by_lookup, adagrad>};
  return kRunners[vectors - 1];
}

template <class Row>
Runner in_scratch(int vectors) {
  static constexpr Runner kRunners[] = {run_in_scratch<Row, 1>, run_in_scratch<Row, 2>, run_in_scratch<Row, 3>,
                                        run_in_scratch<Row, 4>, run_in_scratch<Row, 5>, run_in_scratch<Row, 6>,
                                        run_in_scratch<Row, 7>, run_in_scratch<Row, 8>};
  return kRunners[vectors - 1];
}

Runner runner_for(const Work& work) {
  const TableView& table = work.table;
  const Optimizer kind = work.args.optimizer.kind;
  const auto vectors = static_cast<int>((table.dim - 1) % (16 * kMaxVectors) / 16 + 1);
  switch (table.dtype) {
    case DType::bf16: return in_scratch<Bf16Row>(vectors);
    case DType::f16: return in_scratch<F16Row>(vectors);
    case DType::e4m3: return in_scratch<E4m3Row>(vectors);
    case DType::u8: return in_scratch<U8Row>(vectors);
    case DType::u4: return in_scratch<U4Row>(vectors);
    default: break;
  }
  const bool simple = kind == Optimizer::sgd || kind == Optimizer::row_wise_adagrad;
  if (table.dim > 16 * kMaxVectors || !simple || work.args.grad_weights != nullptr) return in_scratch<F32Row>(vectors);
  if (work.runs.lookups != nullptr)
    return kind == Optimizer::sgd ? in_registers<true, false>(vectors) : in_registers<true, true>(vectors);
  return kind == Optimizer::sgd ? in_registers<false, false>(vectors) : in_registers<false, true>(vectors);
}

}  // namespace

Status bag_backward(const BagBackwardArgs& args) {
  std::int64_t skipped;
  if (Status status = validate(args, skipped); !status.ok()) return status;
  for_each_share(args, [&](const BagShare& share) {
    const TableView& table = args.tables[share.table];
    if (table.dim == 0) return;
    const RowRuns runs = runs_of(args, share, skipped != 0);
    const Work work{args,
                    table,
                    runs,
                    gradients_of(args, share, runs),
                    step_size(args.optimizer),
                    random_table(args.optimizer, share.table)};
    runner_for(work)(work);
  });
  return {};
}

}  // namespace octavo::avx512_kernels
