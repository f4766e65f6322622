#include "gemm/sums_over_rows.hpp"

#include "kernels.hpp"

namespace octavo::cuda {

Status sum_over_rows(Gemm g, Product product, Major major, std::int64_t m, std::int64_t x_step, std::int64_t w_step,
                     const MatrixView& out, cudaStream_t stream) {
  if (m == 0)
    return checked(
        cudaMemset2DAsync(out.data, static_cast<std::size_t>(out.row_stride) * 4, 0,
                          static_cast<std::size_t>(out.cols) * 4, static_cast<std::size_t>(out.rows), stream),
        "linear_grad_weight");
  const std::int64_t blocks = padded(g.m, 64) / 64 * (padded(g.n, 128) / 128);
  const Slices slices = slices_of(m, blocks, device_info().multiprocessors);
  const std::int64_t size = static_cast<std::int64_t>(g.m) * g.n;
  const bool in_place = slices.total() == 1 && g.m == out.rows && g.n == out.cols;
  StreamBuffer parts(stream);
  if (!in_place)
    if (Status s = parts.allocate(static_cast<std::size_t>(slices.total() * size) * 4); !s.ok()) return s;
  float* d = in_place ? static_cast<float*>(out.data) : parts.as<float>();
  g.ldd = in_place ? out.row_stride : g.n;
  g.d_dtype = DType::f32;

  const auto slice = [&](std::int64_t first, std::int64_t count, std::int64_t rows) {
    Gemm part = g;
    const std::int64_t bytes = bytes_of(product), row = first * slices.rows;
    part.x = static_cast<const char*>(g.x) + row * x_step * bytes;
    part.w = static_cast<const char*>(g.w) + row * w_step * bytes;
    part.d = d + first * size;
    part.k = static_cast<int>(rows);
    part.batch = static_cast<int>(count);
    part.x_batch = slices.rows * x_step;
    part.w_batch = slices.rows * w_step;
    part.d_batch = size;
    return run_best(request_of(part, product, major, major), part, stream);
  };
  if (slices.count > 0)
    if (Status s = slice(0, slices.count, slices.rows); !s.ok()) return s;
  if (slices.rest > 0) {
    // Operands that lie along the rows of the batch have zeros up to the next multiple of 16 bytes.
    const std::int64_t rest = major == Major::k ? padded(slices.rest, alignment_of(product)) : slices.rest;
    if (Status s = slice(slices.count, 1, rest); !s.ok()) return s;
  }
  if (in_place) return {};
  return sum_slices(parts.as<float>(), slices.total(), size, g.n, out, stream);
}

}  // namespace octavo::cuda
