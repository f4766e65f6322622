// The walk over samples and tiles that all pairwise kernels share, and where a triangle's rows lie.
//
// In an anonymous namespace: compiled with several instruction sets, and the linker must never mix the copies.
#pragma once

#include "octavo/memory.hpp"
#include "octavo/pairwise.hpp"
#include "octavo/threading.hpp"

namespace octavo {
namespace {

// Scratch slots of the pairwise kernels.
enum : int { kYPanels, kXRows, kTile, kExpanded };

// The columns [begin, end) of row i that `pairs` keeps, and where they start in the packed triangle.
struct KeptColumns {
  std::int64_t begin, end, offset;
};
inline KeptColumns kept_columns(Pairs pairs, std::int64_t i, std::int64_t columns) {
  switch (pairs) {
    case Pairs::lower: return {0, i, i * (i - 1) / 2};
    case Pairs::upper: return {i + 1, columns, i * columns - i * (i + 1) / 2};
    default: return {0, columns, 0};
  }
}

// Cuts rows into tiles of at most `tallest`, about equally high. A triangle is also cut where its rows begin to need
// another vector of `lanes` columns, so that no tile computes a vector that none of its rows keeps.
template <class Tile>
void for_each_tile(Pairs pairs, Range rows, std::int64_t lanes, std::int64_t tallest, Tile&& tile) {
  for (std::int64_t begin = rows.begin; begin < rows.end;) {
    std::int64_t end = rows.end;
    if (pairs == Pairs::lower) end = (begin + lanes - 1) / lanes * lanes + 1;
    if (pairs == Pairs::upper) end = (begin + 1) / lanes * lanes + lanes - 1;
    if (end > rows.end) end = rows.end;
    const std::int64_t tiles = (end - begin + tallest - 1) / tallest;
    for (std::int64_t t = 0; t < tiles; ++t)
      tile(begin + (end - begin) * t / tiles, begin + (end - begin) * (t + 1) / tiles);
    begin = end;
  }
}

template <class T>
inline const T* row_of(const BatchView& view, std::int64_t b, std::int64_t row) {
  return static_cast<const T*>(view.data) + b * view.batch_stride + row * view.row_stride;
}

// The symmetric [n, n] with zeros on its diagonal whose triangle is sample b of x, in FP32.
template <class T, class Decode>
BatchView expanded(const PairwiseArgs& args, std::int64_t b, Decode&& decode) {
  const std::int64_t n = args.rows(), stride = args.x.col_stride;
  const T* packed = row_of<T>(args.x, b, 0);
  auto* out = static_cast<float*>(scratch(kExpanded, static_cast<std::size_t>(n * n) * sizeof(float)));
  for (std::int64_t i = 0; i < n; ++i) {
    out[i * n + i] = 0.0f;
    const KeptColumns kept = kept_columns(args.x_pairs, i, n);
    for (std::int64_t j = kept.begin; j < kept.end; ++j)
      out[i * n + j] = out[j * n + i] = decode(packed[(kept.offset + j - kept.begin) * stride]);
  }
  return {out, n, n, 0, n, 1, DType::f32};
}

// A kernel offers
//   kLanes, kTallest                            columns of a vector, rows of the tallest tile
//   Kernel(args)
//   load(b, rows)                               operands of sample b, of x the rows [begin, end) at least
//   multiply(first, last, vectors, c, stride)   products of rows [first, last) with whole vectors of columns; c [rows]
//   write(c, n, out)                            n products to out, in its type
template <class Kernel>
Status run_pairwise(const PairwiseArgs& args) {
  if (Status status = validate(args); !status.ok()) return status;
  const std::int64_t rows = args.rows(), columns = args.y.rows;
  if (args.batch == 0 || rows == 0 || columns == 0) return {};
  const PairwiseShares shares = share_samples(args);
  parallel_region(shares.threads, [&](int thread, int count) {
    constexpr std::int64_t lanes = Kernel::kLanes;
    const std::int64_t stride = (columns + lanes - 1) / lanes * lanes;
    auto* c = static_cast<float*>(scratch(kTile, static_cast<std::size_t>(Kernel::kTallest * stride) * sizeof(float)));
    Kernel kernel(args);
    const Range units = partition(args.batch * shares.parts, thread, count);
    for (std::int64_t unit = units.begin; unit < units.end; ++unit) {
      const std::int64_t b = unit / shares.parts;
      const Range part = partition(rows, static_cast<int>(unit % shares.parts), static_cast<int>(shares.parts));
      if (part.begin == part.end) continue;
      kernel.load(b, part);
      char* out = static_cast<char*>(args.out) + b * args.out_batch_stride * static_cast<int>(size_of(args.out_dtype));
      for_each_tile(args.pairs, part, lanes, Kernel::kTallest, [&](std::int64_t first, std::int64_t last) {
        const Range needed = {kept_columns(args.pairs, first, columns).begin,
                              kept_columns(args.pairs, last - 1, columns).end};
        if (needed.begin >= needed.end) return;
        const Range vectors = {needed.begin / lanes, (needed.end + lanes - 1) / lanes};
        kernel.multiply(first, last, vectors, c, stride);
        for (std::int64_t i = first; i < last; ++i) {
          const KeptColumns kept = kept_columns(args.pairs, i, columns);
          const std::int64_t at = args.pairs == Pairs::all ? i * args.out_row_stride : kept.offset;
          kernel.write(c + (i - first) * stride + kept.begin, kept.end - kept.begin,
                       out + at * static_cast<int>(size_of(args.out_dtype)));
        }
      });
    }
  });
  return {};
}

}  // namespace
}  // namespace octavo
