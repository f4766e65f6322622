// Pooled rows of many tables, plain C++: the reference of every hand-written bag kernel.
#include "cpu/bag_partition.hpp"
#include "cpu/bag_prefetch.hpp"
#include "octavo/embedding.hpp"
#include "octavo/float8.hpp"
#include "octavo/memory.hpp"
#include "octavo/threading.hpp"

namespace octavo::OCTAVO_ISA_NAMESPACE {
namespace {

// Adds weight * row to acc [dim].
[[gnu::always_inline]] inline void add_row(const TableView& table, const float* decoded, std::int64_t row, float weight,
                                           float* __restrict acc) {
  const std::int64_t dim = table.dim, at = row * table.row_stride;
  switch (table.dtype) {
    case DType::f32: {
      const float* __restrict x = static_cast<const float*>(table.rows) + at;
      for (std::int64_t c = 0; c < dim; ++c) acc[c] += weight * x[c];
      break;
    }
    case DType::f16: {
      const std::uint16_t* __restrict x = static_cast<const std::uint16_t*>(table.rows) + at;
      for (std::int64_t c = 0; c < dim; ++c) acc[c] += weight * decode_f16(x[c]);
      break;
    }
    case DType::bf16: {
      const std::uint16_t* __restrict x = static_cast<const std::uint16_t*>(table.rows) + at;
      for (std::int64_t c = 0; c < dim; ++c) acc[c] += weight * decode_bf16(x[c]);
      break;
    }
    case DType::e4m3: {
      const std::uint8_t* __restrict x = static_cast<const std::uint8_t*>(table.rows) + at;
      const float scale = weight * (table.scale_exponents != nullptr ? std::ldexp(1.0f, table.scale_exponents[row]-127) : *table.scale_of(row));
      for (std::int64_t c = 0; c < dim; ++c) acc[c] += scale * decoded[x[c]];
      break;
    }
    case DType::u8: {
      const std::uint8_t* __restrict x = static_cast<const std::uint8_t*>(table.rows) + at;
      const float scale = weight * table.scale_of(row)[0], bias = weight * table.scale_of(row)[1];
      for (std::int64_t c = 0; c < dim; ++c) acc[c] += scale * static_cast<float>(x[c]) + bias;
      break;
    }
    default: {
      const std::uint8_t* __restrict x = static_cast<const std::uint8_t*>(table.rows) + at;
      const float scale = weight * table.scale_of(row)[0], bias = weight * table.scale_of(row)[1];
      for (std::int64_t c = 0; c + 1 < dim; c += 2) {
        acc[c] += scale * static_cast<float>(x[c / 2] & 15) + bias;
        acc[c + 1] += scale * static_cast<float>(x[c / 2] >> 4) + bias;
      }
      if (dim % 2 == 1) acc[dim - 1] += scale * static_cast<float>(x[dim / 2] & 15) + bias;
    }
  }
}

}  // namespace

Status bag_forward(const BagForwardArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  const BagIndices& in = args.indices;
  std::int64_t widest = 0, outside = 0;
  for (std::int64_t t = 0; t < in.num_tables; ++t) widest = widest < args.tables[t].dim ? args.tables[t].dim : widest;
  float decoded[256];
  for (int code = 0; code < 256; ++code) decoded[code] = decode_e4m3(static_cast<std::uint8_t>(code));
  parallel_region(bag_threads(args.tables, in), [&](int thread, int count) {
    auto* acc = static_cast<float*>(scratch(0, static_cast<std::size_t>(widest) * sizeof(float)));
    const BagSpan span = bag_span(args.tables, in, thread, count);
    BagPrefetch prefetch(args.tables, in, span.table, span.first_value, span.last_value);
    std::int64_t found = 0;
    for_each_bag_range(args.tables, in, thread, count, [&](std::int64_t t, std::int64_t column, Range bags) {
      const TableView& table = args.tables[t];
      for (std::int64_t b = bags.begin; b < bags.end; ++b) {
        const std::int64_t begin = in.first_value(t, b), end = in.first_value(t, b + 1);
        for (std::int64_t c = 0; c < table.dim; ++c) acc[c] = 0;
        std::int64_t kept = 0;
        for (std::int64_t v = begin; v < end; ++v) {
          if (v >= prefetch.aim().until) prefetch.advance(v);
          prefetch.fetch(in.values[v + prefetch.aim().ahead]);
          const std::int64_t row = in.values[v];
          if (static_cast<std::uint64_t>(row) >= static_cast<std::uint64_t>(table.num_rows)) continue;
          add_row(table, decoded, row, in.weights != nullptr ? in.weights[v] : 1.0f, acc);
          ++kept;
        }
        found += end - begin - kept;
        if (table.pooling == Pooling::mean && kept > 1)
          for (std::int64_t c = 0; c < table.dim; ++c) acc[c] /= static_cast<float>(kept);
        if (args.out.dtype == DType::f32) {
          float* out = static_cast<float*>(args.out.data) + b * args.out.row_stride + column;
          for (std::int64_t c = 0; c < table.dim; ++c) out[c] = acc[c];
        } else {
          auto* out = static_cast<std::uint16_t*>(args.out.data) + b * args.out.row_stride + column;
          for (std::int64_t c = 0; c < table.dim; ++c) out[c] = encode_bf16(acc[c]);
        }
      }
    });
    if (found != 0) __atomic_fetch_add(&outside, found, __ATOMIC_RELAXED);
  });
  return report_outside(args, outside);
}

}  // namespace octavo::OCTAVO_ISA_NAMESPACE
