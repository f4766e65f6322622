#include <algorithm>

#include "gemm/layers.hpp"

namespace octavo::cuda {
namespace {

// Scratch for `rows` x `ld` elements. What fills the first `filled` rows also clears their padding.
Status allocate_padded(std::int64_t filled, std::int64_t rows, std::int64_t ld, std::int64_t bytes, cudaStream_t stream,
                       StreamBuffer& scratch, Operand& out, const Series& series) {
  if (Status s = scratch.allocate(static_cast<std::size_t>(series.count * rows * ld * bytes)); !s.ok()) return s;
  out = {scratch.as<void>(), ld, rows * ld};
  if (rows == filled) return {};
  return checked(cudaMemsetAsync(scratch.as<char>() + filled * ld * bytes, 0,
                                 static_cast<std::size_t>((rows - filled) * ld * bytes), stream),
                 "padded operand");
}

}  // namespace

Status padded_operand(const MatrixView& x, std::int64_t rows, std::int64_t cols, cudaStream_t stream,
                      StreamBuffer& scratch, Operand& out, const Series& series) {
  const auto bytes = static_cast<std::int64_t>(size_of(x.dtype));
  const std::int64_t own = ld_of(x);
  out = {x.data, own, series.distance};
  if (rows == x.rows && cols == x.cols && own >= cols && rows_are_aligned(out.data, own * bytes) &&
      series.distance * bytes % 16 == 0)
    return {};
  if (Status s = allocate_padded(x.rows, rows, padded(cols, 16 / bytes), bytes, stream, scratch, out, series); !s.ok())
    return s;
  return copy_rows(x, scratch.as<void>(), out.ld, stream, series);
}

Status bf16_operand(const MatrixView& x, const float* scale, std::int64_t rows, std::int64_t cols, cudaStream_t stream,
                    StreamBuffer& scratch, Operand& out, Scaling scaling, const Series& series) {
  if (x.dtype == DType::bf16) return padded_operand(x, rows, cols, stream, scratch, out, series);
  if (Status s = allocate_padded(x.rows, rows, padded(cols, 8), 2, stream, scratch, out, series); !s.ok()) return s;
  return to_bf16(x, scale, scratch.as<void>(), out.ld, stream, scaling, series);
}

bool rows_are_aligned(const void* data, std::int64_t row_bytes) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && row_bytes % 16 == 0;
}

std::int64_t ld_of(const MatrixView& x) { return x.rows > 1 ? x.row_stride : std::max(x.row_stride, x.cols); }

Status expect_readable(const GradInputArgs& args) {
  const PackedWeight& w = *args.weight;
  return expect_aligned("linear_grad_input", {{"grad", args.grad},
                                              {"weight", w.codes(), size_of(w.format())},
                                              {"weight's scales", w.scale(), 4},
                                              {"out", args.grad_x}});
}

Status expect_readable(const GradWeightArgs& args) {
  return expect_aligned("linear_grad_weight", {{"grad", args.grad}, {"x", args.x}, {"out", args.grad_weight}});
}

Residual residual_of(const MatrixView& residual) {
  if (residual.data == nullptr) return Residual::none;
  return residual.dtype == DType::f32 ? Residual::f32 : Residual::bf16;
}

TileRequest request_of(const Gemm& g, Product product, Major x_major, Major w_major) {
  TileRequest request;
  request.product = product;
  request.m = g.m;
  request.n = g.n;
  request.k = g.k;
  request.x_major = x_major;
  request.w_major = w_major;
  request.d_is_f32 = g.d_dtype == DType::f32;
  request.d_is_codes = g.d_dtype == DType::e4m3;
  request.d_aligned = rows_are_aligned(g.d, g.ldd * static_cast<std::int64_t>(size_of(g.d_dtype)));
  request.norm = g.norm != NormKind::none;
  request.norm_block = g.norm_block;
  request.residual = residual_of(g.residual);
  request.batch = g.batch;
  request.sm_count = device_info().multiprocessors;
  return request;
}

Status run_best(const TileRequest& request, const Gemm& g, cudaStream_t stream) {
  const int tile = choose_tile(request);
  if (tile < 0)
    return Status::unsupported("gemm: no kernel for m = " + std::to_string(g.m) + ", n = " + std::to_string(g.n) +
                               ", k = " + std::to_string(g.k) + " with this epilogue");
  return run_gemm(tile, g, stream);
}

}  // namespace octavo::cuda
