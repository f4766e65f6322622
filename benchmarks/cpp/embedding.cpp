// Embedding bags: 8 tables, dim 64, sum pooling, batch 1024, uniform indices; forward per row format, backward per
// optimizer and row format.
#include <algorithm>

#include "kernel_benchmarks.hpp"
#include "octavo/memory.hpp"

namespace octavo::benchmarks {

namespace {

constexpr std::int64_t kTables = 8, kDim = 64, kBatch = 1024, kRows = 100000;
constexpr std::int64_t kLengths[] = {1, 20};
constexpr DType kRowTypes[] = {DType::f32, DType::f16, DType::bf16, DType::e4m3, DType::u8, DType::u4};

// Tables of small finite values (the byte 0x2a repeated is one in every format) and bags of uniform indices.
struct Bags {
  AlignedBuffer rows;
  std::vector<float> scale, state, dense;
  std::vector<TableView> tables;
  std::vector<std::int64_t> values, offsets;
  std::int64_t length, sets;

  Bags(DType dtype, std::int64_t bag_length, std::int64_t state_width = 1)
      : rows(static_cast<std::size_t>(kTables * kRows * packed_bytes(dtype, kDim))),
        scale(static_cast<std::size_t>(kTables * kRows) * 2, 0.5f),
        state(static_cast<std::size_t>(kTables * kRows * state_width)),
        dense(static_cast<std::size_t>(kBatch * kTables * kDim), 0.125f),
        length(bag_length),
        sets(bag_length > 1 ? 8 : 128) {  // so many that rows of the last round left the caches
    std::fill_n(rows.as<std::uint8_t>(), rows.size(), std::uint8_t{0x2a});
    for (std::int64_t t = 0; t < kTables; ++t) {
      TableView table;
      table.rows = rows.as<std::uint8_t>() + t * kRows * packed_bytes(dtype, kDim);
      table.num_rows = kRows;
      table.dim = kDim;
      table.row_stride = packed_bytes(dtype, kDim) / static_cast<std::int64_t>(size_of(dtype));
      table.dtype = dtype;
      if (dtype == DType::e4m3) table.scale_stride = 1;
      if (dtype == DType::u8 || dtype == DType::u4) table.scale_stride = 2;
      if (table.scale_stride != 0) table.scale = scale.data() + t * kRows * table.scale_stride;
      table.optimizer_state = state.data() + t * kRows * state_width;
      tables.push_back(table);
    }
    std::mt19937_64 generator(7);
    std::uniform_int_distribution<std::int64_t> row(0, kRows - 1);
    for (std::int64_t i = 0; i < sets * per_call(); ++i) values.push_back(row(generator));
    for (std::int64_t b = 0; b <= kTables * kBatch; ++b) offsets.push_back(b * length);
  }

  std::int64_t per_call() const { return kTables * kBatch * length; }
  BagIndices indices(std::int64_t call) const {
    BagIndices bags;
    bags.batch = kBatch;
    bags.num_tables = kTables;
    bags.values = values.data() + call % sets * per_call();
    bags.num_values = per_call();
    bags.offsets = offsets.data();
    return bags;
  }
  MatrixView view() { return {dense.data(), kBatch, kTables * kDim, kTables * kDim, DType::f32}; }

  void report(benchmark::State& state, double passes, DType dtype) const {
    const std::int64_t row_bytes = packed_bytes(dtype, kDim);
    state.SetItemsProcessed(state.iterations() * per_call());
    share_of(state, passes * static_cast<double>(per_call()), gather_roof(row_bytes));
  }
};

std::string shape(std::int64_t length) { return "tables:8/rows:100000/dim:64/length:" + std::to_string(length); }

}  // namespace

void add_bag_forward(const KernelInfo& kernel) {
  for (const DType dtype : kRowTypes)
    for (const std::int64_t length : kLengths) {
      if (!names(kernel, dtype)) continue;
      add(kernel, std::string(word(dtype)) + "/" + shape(length),
          [=, run = kernel.run.bag_forward](benchmark::State& state) {
            Bags bags(dtype, length);
            BagForwardArgs args;
            args.tables = bags.tables.data();
            args.out = bags.view();
            std::int64_t call = 0;
            const bool ran = repeat(state, [&] {
              args.indices = bags.indices(call++);
              return run(args);
            });
            if (ran) bags.report(state, 1, dtype);
          });
    }
}

void add_row_lookup(const KernelInfo& kernel) {
  for (const DType dtype : kRowTypes) {
    if (!names(kernel, dtype)) continue;
    add(kernel, std::string(word(dtype)) + "/" + shape(1), [=, run = kernel.run.row_lookup](benchmark::State& state) {
      Bags bags(dtype, 1);
      std::vector<MatrixView> outs;
      for (std::int64_t t = 0; t < kTables; ++t)
        outs.push_back({bags.dense.data() + t * kBatch * kDim, kBatch, kDim, kDim, DType::f32});
      RowLookupArgs args;
      args.tables = bags.tables.data();
      args.outs = outs.data();
      std::int64_t call = 0;
      const bool ran = repeat(state, [&] {
        args.indices = bags.indices(call++);
        return run(args);
      });
      if (ran) bags.report(state, 1, dtype);
    });
  }
}

void add_bag_backward(const KernelInfo& kernel) {
  using Kind = OptimizerConfig::Kind;
  const struct {
    const char* word;
    Kind kind;
    DType rows;
    std::int64_t state;  // FP32 numbers a row
  } cases[] = {{"sgd", Kind::sgd, DType::f32, 1},
               {"row_wise_adagrad", Kind::row_wise_adagrad, DType::f32, 1},
               {"adagrad", Kind::adagrad, DType::f32, kDim},
               {"adam", Kind::adam, DType::f32, 2 * kDim},
               {"row_wise_adagrad", Kind::row_wise_adagrad, DType::bf16, 1},
               {"row_wise_adagrad", Kind::row_wise_adagrad, DType::e4m3, 1},
               {"row_wise_adagrad", Kind::row_wise_adagrad, DType::u8, 1}};
  for (const auto& c : cases)
    for (const std::int64_t length : kLengths)
      add(kernel, std::string(c.word) + "/" + word(c.rows) + "/" + shape(length),
          [=, run = kernel.run.bag_backward](benchmark::State& state) {
            Bags bags(c.rows, length, c.state);
            BagBackwardArgs args;
            args.tables = bags.tables.data();
            args.grad_out = bags.view();
            args.optimizer.kind = c.kind;
            args.optimizer.lr = 1e-6f;
            std::int64_t call = 0;
            const bool ran = repeat(state, [&] {
              args.indices = bags.indices(call++);
              args.optimizer.step = call;
              return run(args);
            });
            // A row is read and written, and a state as wide as rows too.
            if (ran) bags.report(state, 2.0 * static_cast<double>(1 + c.state / kDim), c.rows);
          });
}

}  // namespace octavo::benchmarks
