// Embedding bags: pooled rows of many tables in one call, and their backward fused with the optimizer.
#pragma once

#include <cstdint>

#include "octavo/types.hpp"

namespace octavo {

enum class Pooling : std::uint8_t { sum, mean };
// A row index outside its table: refused (a forward's output is then unspecified, a backward has written nothing), or
// the row is skipped as if it were not in the bag.
enum class Bounds : std::uint8_t { error, warn, ignore };

// Rows of one table. FP32, FP16 and BF16: elements. E4M3: codes, one FP32 scale a row or a power of two. INT8 and INT4:
// unsigned affine codes, FP32 scale and bias a row (value = code * scale + bias), as FBGEMM has it.
// Scales are an array of their own, or lie in the rows: scale_stride is then the row's bytes / 4.
struct TableView {
  const char* name = nullptr;  // for errors; null: its number
  void* rows = nullptr;        // [num_rows, dim] in `dtype`, row_stride elements (u4: bytes) apart
  std::int64_t num_rows = 0;
  std::int64_t dim = 0;
  std::int64_t row_stride = 0;
  DType dtype = DType::f32;          // f32, f16, bf16, e4m3, u8, u4
  float* scale = nullptr;            // e4m3: [num_rows]; u8, u4: [num_rows, 2] (scale, bias); a backward rewrites it
  Pooling pooling = Pooling::sum;    // mean: the weighted sum divided by the number of rows in the bag
  float* optimizer_state = nullptr;  // as the optimizer wants it
  std::int64_t scale_stride = 0;     // floats from one row's scale to the next's
  std::uint8_t* scale_exponents =
      nullptr;  // e4m3, instead of scale: [num_rows], scale 2^(byte - 127), 255 = NaN (E8M0)

  [[gnu::always_inline]] float* scale_of(std::int64_t row) const { return scale + row * scale_stride; }
  [[gnu::always_inline]] std::int64_t stored_bytes() const { return packed_bytes(dtype, dim); }  // of a row's codes
};

// Bag b of table t holds values[offsets[t * batch + b] .. offsets[t * batch + b + 1]).
struct BagIndices {
  std::int64_t batch = 0;
  std::int64_t num_tables = 0;
  const std::int64_t* values = nullptr;  // [num_values]
  std::int64_t num_values = 0;
  const std::int64_t* offsets = nullptr;  // [num_tables * batch + 1]
  const float* weights = nullptr;         // [num_values] or null

  [[gnu::always_inline]] std::int64_t first_value(std::int64_t table, std::int64_t bag) const {
    return offsets[table * batch + bag];
  }
};

struct BagForwardArgs {
  const TableView* tables = nullptr;
  BagIndices indices;
  Bounds bounds = Bounds::error;
  MatrixView out;                         // [batch, sum of dims] f32 or bf16; table t starts where t - 1 ends
  std::int64_t* out_of_bounds = nullptr;  // number of skipped rows, may be null
  void* stream = nullptr;                 // CUDA only
};

// Row v of table t's lookups, without pooling: outs[t] is [lookups of table t, dim] f32 or bf16. Indices hold no
// weights; a lookup outside its table gives zeros where bounds let it pass.
struct RowLookupArgs {
  const TableView* tables = nullptr;
  BagIndices indices;
  Bounds bounds = Bounds::error;
  const MatrixView* outs = nullptr;       // [num_tables], all of one type
  std::int64_t* out_of_bounds = nullptr;  // number of such lookups, may be null
  void* stream = nullptr;                 // CUDA only
};

// How a row narrower than FP32 takes its new value. Stochastic: one of the two codes around it, so chosen that the
// expectation is the value; small updates then add up where rounding to nearest loses every one.
enum class Rounding : std::uint8_t { nearest, stochastic };

// g = sum over the bags that hold a row of weight * grad_out, + weight_decay * row; then, elementwise where not said:
//   sgd:               row -= lr * g
//   row_wise_adagrad:  state [num_rows] += mean(g^2); row -= lr / (sqrt(state) + eps) * g
//   adagrad:           state [num_rows, dim] += g^2; row -= lr * g / (sqrt(state) + eps)
//   adam:              state [num_rows, 2, dim], m and v: m += (1 - beta1) * (g - m), v += (1 - beta2) * (g^2 - v),
//                      row -= lr * sqrt(1 - beta2^step) / (1 - beta1^step) * m / (sqrt(v) + eps)
// Rows that no bag holds keep row and state as they are (of Adam: lazy, as torch.optim.SparseAdam).
struct OptimizerConfig {
  enum class Kind : std::uint8_t { none, sgd, row_wise_adagrad, adagrad, adam } kind = Kind::sgd;  // none: no update
  float lr = 0.01f;
  float eps = 1e-8f;
  float weight_decay = 0.0f;  // L2
  float beta1 = 0.9f, beta2 = 0.999f;
  std::int64_t step = 1;  // number of this update, from 1
  Rounding rounding = Rounding::stochastic;
  std::uint64_t seed = 0;        // random bits are a function of (seed, step, table, row, column)
  std::int64_t first_table = 0;  // number of the call's first table, for the random bits
};

// Rows are decoded, updated in FP32 and rounded; E4M3 and INT8 rows get a new scale from their new values. Bitwise the
// same for any number of threads.
struct BagBackwardArgs {
  const TableView* tables = nullptr;  // updated in place
  BagIndices indices;
  Bounds bounds = Bounds::error;
  MatrixView grad_out;  // [batch, sum of dims] f32
  OptimizerConfig optimizer;
  float* grad_weights = nullptr;  // [num_values], may be null: gradients of the weights at the rows before the update
  void* stream = nullptr;         // CUDA only
};

using BagForwardLauncher = Status (*)(const BagForwardArgs&);
using RowLookupLauncher = Status (*)(const RowLookupArgs&);
using BagBackwardLauncher = Status (*)(const BagBackwardArgs&);

// Offsets that start at 0, never decrease and end at num_values; else a Status that names the first bad place.
Status validate(const BagIndices& indices);

// Everything a forward kernel relies on before it writes: offsets, shapes, types. It meets row indices as it goes,
// skips those outside their table and counts them.
Status validate(const BagForwardArgs& args);
Status validate(const RowLookupArgs& args);
// The same without what only offsets and values tell: all that a kernel can check whose indices lie on a device.
Status validate_shapes(const BagForwardArgs& args);
Status validate_shapes(const RowLookupArgs& args);
Status validate_shapes(const BagBackwardArgs& args);
// What a forward kernel returns that skipped `outside` lookups: with Bounds::error the first of them as a Status.
Status report_outside(const BagForwardArgs& args, std::int64_t outside);
Status report_outside(const RowLookupArgs& args, std::int64_t outside);

// The settings an optimizer of this kind reads.
Status validate(const OptimizerConfig& optimizer);

// The same before a backward kernel, and row indices too: with Bounds::error one outside its table is a Status; else
// `skipped` tells how many there are.
Status validate(const BagBackwardArgs& args, std::int64_t& skipped);

}  // namespace octavo
