// A linear layer on Hopper: round x as the class says, one GEMM, and what its epilogue could not do.
//
// layer_plan.cpp says by which route and kernel.
//
// Alignment is settled in operands.cpp: K is padded while x is rounded. A weight whose K is no multiple of 16 bytes, or
// whose address is none, is copied into padded scratch on every call, which is slow and right.
#include <algorithm>
#include <climits>

#include "gemm/layer_plan.hpp"
#include "gemm/layers.hpp"

namespace octavo::cuda {
namespace {

constexpr std::int64_t kLargest = INT_MAX;

// Whether the memory accelerator can write these rows, of every layer.
bool takes_rows(const MatrixView& d, std::int64_t distance = 0) {
  const auto element = static_cast<std::int64_t>(size_of(d.dtype));
  return rows_are_aligned(d.data, ld_of(d) * element) && distance * element % 16 == 0;
}

struct Layer {
  const LinearArgs& args;
  const LinearBatch& batch;
  Product product;
  cudaStream_t stream;

  bool has_blocks() const { return product == Product::e4m3_block; }
  Series xs() const { return {batch.count, batch.x}; }

  // x and w of the product, and scales; memory of copies lives in `scratch`.
  Status operands(Gemm& g, StreamBuffer (&scratch)[3]) const {
    const PackedWeight& w = *args.weight;
    const std::int64_t k = padded(std::max<std::int64_t>(w.k(), 1), alignment_of(product));
    Operand x, codes;
    const std::int64_t weights = batch.count * w.n();
    const MatrixView weight{const_cast<void*>(w.codes()), weights, w.k(), w.k(), w.format()};
    if (Status s = padded_operand(weight, weights, k, stream, scratch[0], codes); !s.ok()) return s;
    if (product == Product::bf16) {
      if (Status s = bf16_operand(args.x, nullptr, args.x.rows, k, stream, scratch[1], x, Scaling::row, xs()); !s.ok())
        return s;
    } else if (size_of(args.x.dtype) == 1) {
      if (Status s = padded_operand(args.x, args.x.rows, k, stream, scratch[1], x); !s.ok()) return s;
      g.x_scale = args.x_scale;
      if (has_blocks()) {
        if (Status s = transposed_scales(scratch[2]); !s.ok()) return s;
        g.x_scale = scratch[2].as<float>();
      }
    } else {
      if (Status s = quantized(k, scratch[1], scratch[2]); !s.ok()) return s;
      x = {scratch[1].as<void>(), k, args.x.rows * k};
      g.x_scale = scratch[2].as<float>();
    }
    // Blocks write y while others still read whole rows of x.
    if (x.data == args.x.data && may_overlap(args.x, batch.x, args.y, batch.y, batch.count))
      if (Status s = copy_of(x, scratch[1]); !s.ok()) return s;
    g.x = x.data;
    g.ldx = x.ld;
    g.w = codes.data;
    g.ldw = codes.ld;
    g.w_scale = w.scale();
    g.m = static_cast<int>(args.x.rows);
    g.n = static_cast<int>(w.n());
    g.k = static_cast<int>(k);
    if (batch.count == 1) return {};
    g.batch = static_cast<int>(batch.count);
    g.x_batch = x.batch;
    g.w_batch = w.n() * codes.ld;
    g.row_batch = g.m;
    g.column_batch = g.n;
    return {};
  }

  Status copy_of(Operand& x, StreamBuffer& scratch) const {
    const std::int64_t rows = batch.count * args.x.rows, element = static_cast<std::int64_t>(size_of(args.x.dtype));
    if (Status s = scratch.allocate(static_cast<std::size_t>(rows * x.ld * element)); !s.ok()) return s;
    MatrixView own = args.x;
    own.row_stride = x.ld;
    x = {scratch.as<void>(), x.ld, args.x.rows * x.ld};
    return copy_rows(own, scratch.as<void>(), x.ld, stream, xs());
  }

  Status quantized(std::int64_t k, StreamBuffer& codes, StreamBuffer& scale) const {
    const std::int64_t rows = batch.count * args.x.rows, ld = block_scale_ld(args.x.rows);
    const std::int64_t scales = has_blocks() ? scale_blocks(k) * ld : rows;
    if (Status s = codes.allocate(static_cast<std::size_t>(rows * k)); !s.ok()) return s;
    if (Status s = scale.allocate(static_cast<std::size_t>(scales) * 4); !s.ok()) return s;
    const QuantizeArgs quantize{.x = args.x,
                                .format = DType::e4m3,
                                .scaling = has_blocks() ? Scaling::block_1x128 : Scaling::row,
                                .codes = codes.as<void>(),
                                .scale = scale.as<float>(),
                                .stream = stream};
    return has_blocks() ? quantize_block_transposed(quantize, k, ld) : quantize_row_padded(quantize, k, nullptr, xs());
  }

  // Of codes that came with theirs.
  Status transposed_scales(StreamBuffer& scale) const {
    const std::int64_t blocks = scale_blocks(args.x.cols), ld = block_scale_ld(args.x.rows);
    if (Status s = scale.allocate(static_cast<std::size_t>(blocks * ld) * 4); !s.ok()) return s;
    return transpose_scales(args.x_scale, args.x.rows, blocks, scale.as<float>(), ld, stream);
  }

  // K = 0 is padded to a block of zeros, which has no scales yet.
  Status scale_nothing(Gemm& g, StreamBuffer& zeros) const {
    const std::size_t bytes = static_cast<std::size_t>(std::max(block_scale_ld(g.m), scale_blocks(g.n))) * 4;
    if (Status s = zeros.allocate(bytes); !s.ok()) return s;
    g.x_scale = g.w_scale = zeros.as<float>();
    return checked(cudaMemsetAsync(zeros.as<void>(), 0, bytes, stream), "linear");
  }

  LayerPlan plan() const {
    const Epilogue& e = args.epilogue;
    LayerRequest request;
    request.product = product;
    request.m = args.x.rows;
    request.n = args.y.cols;
    request.k = args.x.cols;
    request.x = args.x.dtype;
    request.y = args.y.dtype;
    request.norm = e.norm;
    request.norm_block = e.norm_block;
    request.residual = residual_of(e.residual);
    request.residual_first = e.residual_before_norm;
    request.residual_rows = e.residual_rows != nullptr;
    request.y_aligned = takes_rows(args.y, batch.y);
    request.saved = e.saved.data != nullptr;
    request.saved_aligned = takes_rows(e.saved);
    request.batch = static_cast<int>(batch.count);
    request.sm_count = device_info().multiprocessors;
    return recent_plan(request);
  }

  // What the norm sees, of a layer whose steps are in BF16.
  void set_summands(Gemm& g) const {
    g.bias = args.epilogue.bias;
    if (!args.epilogue.residual_before_norm) return;
    g.residual = args.epilogue.residual;
    g.residual_first = true;
  }

  // What the GEMM does beside its product, of a layer that is not made in steps.
  void set_epilogue(Gemm& g) const {
    const Epilogue& e = args.epilogue;
    g.bias = e.bias;
    g.residual = e.residual;
    g.residual_first = e.residual_before_norm;
    g.activation = e.last_activation();
    const GemmNorm norm = gemm_norm(e.norm, e.norm_block, args.y.cols);
    g.norm = norm.kind;
    g.norm_block = norm.block;
    g.norm_weight = e.norm_weight;
    g.norm_bias = e.norm_bias;
    g.eps = e.eps;
  }

  // Where the GEMM's result goes when it is not y: to what is saved, or to rows of scratch that start at 16 bytes.
  Status between(DType dtype, StreamBuffer& scratch, MatrixView& d) const {
    if (dtype == DType::bf16 && args.epilogue.saved.data != nullptr) {
      d = args.epilogue.saved;
      return {};
    }
    const auto element = static_cast<std::int64_t>(size_of(dtype));
    d = {nullptr, args.y.rows, args.y.cols, padded(args.y.cols, 16 / element), dtype};
    const Status s = scratch.allocate(static_cast<std::size_t>(batch.count * d.rows * d.row_stride * element));
    d.data = scratch.as<void>();
    return s;
  }

  Status run() const {
    StreamBuffer scratch[3] = {StreamBuffer(stream), StreamBuffer(stream), StreamBuffer(stream)},
                 product_memory(stream), zeros(stream);
    Gemm g;
    if (Status s = operands(g, scratch); !s.ok()) return s;
    if (has_blocks() && args.x.cols == 0)
      if (Status s = scale_nothing(g, zeros); !s.ok()) return s;
    const LayerPlan p = plan();
    const bool in_steps = p.route == Route::in_steps, codes = p.route == Route::whole && args.y_scale != nullptr;
    MatrixView d = args.y;
    if (in_steps || codes)
      if (Status s = between(p.product, product_memory, d); !s.ok()) return s;
    g.d = d.data;
    g.ldd = ld_of(d);
    if (batch.count > 1) g.d_batch = in_steps ? d.rows * d.row_stride : batch.y;
    g.d_dtype = d.dtype;
    g.d_scale = args.y_scale;
    if (!in_steps)
      set_epilogue(g);
    else if (p.product == DType::bf16)
      set_summands(g);
    if (Status s = run_gemm(p.tile, g, stream); !s.ok()) return s;
    if (in_steps) return finish_linear(d, args.epilogue, args.y, stream, args.y_scale, {batch.count, batch.y});
    if (!codes) return {};
    const QuantizeArgs quantize{.x = d,
                                .format = args.y.dtype,
                                .scaling = Scaling::row,
                                .codes = args.y.data,
                                .scale = args.y_scale,
                                .stream = stream};
    return quantize_row_padded(quantize, d.cols);
  }
};

Status linear(const LinearArgs& args, Numerics numerics, Product product, const LinearBatch& batch = {}) {
  if (Status status = validate(args, numerics); !status.ok()) return status;
  if (args.x.rows == 0 || args.weight->n() == 0) return {};
  if (args.x.rows > kLargest || args.weight->n() > kLargest || args.weight->k() > kLargest - 16)
    return Status::unsupported("linear: the CUDA kernels take up to 2^31 - 1 rows and columns; split the batch");
  if (args.y_scale != nullptr && args.y.rows > 1 && args.y.row_stride != args.y.cols)
    return Status::unsupported("linear: codes of out must be contiguous");
  const Epilogue& e = args.epilogue;
  if (Status s = expect_aligned("linear", {{"x", args.x},
                                           {"x's scales", args.x_scale, 4},
                                           {"weight", args.weight->codes(), size_of(args.weight->format())},
                                           {"weight's scales", args.weight->scale(), 4},
                                           {"bias", e.bias, 4},
                                           {"norm weight", e.norm_weight, 4},
                                           {"norm bias", e.norm_bias, 4},
                                           {"residual", e.residual},
                                           {"saved", e.saved},
                                           {"out", args.y},
                                           {"out's scales", args.y_scale, 4}});
      !s.ok())
    return s;
  const DeviceGuard guard(args.y.data);
  if (Status s = expect_capability("linear", 9, 0); !s.ok()) return s;
  return Layer{args, batch, product, static_cast<cudaStream_t>(args.stream)}.run();
}

}  // namespace

Status linear_e4m3_row_sm90(const LinearArgs& args) { return linear(args, Numerics::e4m3_row, Product::e4m3); }

Status linear_e4m3_row_fast_sm90(const LinearArgs& args) {
  return linear(args, Numerics::e4m3_row_fast, Product::e4m3_fast);
}

Status linear_e4m3_block_sm90(const LinearArgs& args) {
  return linear(args, Numerics::e4m3_block, Product::e4m3_block);
}

Status linear_bf16_sm90(const LinearArgs& args) { return linear(args, Numerics::bf16, Product::bf16); }

Status linear_batch_e4m3_row_sm90(const LinearArgs& args, const LinearBatch& batch) {
  return linear(args, Numerics::e4m3_row, Product::e4m3, batch);
}

Status linear_batch_e4m3_row_fast_sm90(const LinearArgs& args, const LinearBatch& batch) {
  return linear(args, Numerics::e4m3_row_fast, Product::e4m3_fast, batch);
}

Status linear_batch_bf16_sm90(const LinearArgs& args, const LinearBatch& batch) {
  return linear(args, Numerics::bf16, Product::bf16, batch);
}

}  // namespace octavo::cuda
