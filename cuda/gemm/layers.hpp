// Linear layers and their gradients on Hopper, from tensors of any shape and stride to GEMMs that the kernels take.
#pragma once

#include <cuda_runtime_api.h>

#include "device/device.hpp"
#include "gemm/gemm.hpp"
#include "gemm/tile_choice.hpp"
#include "kernels.hpp"
#include "octavo/linear_backward.hpp"
#include "octavo/linear_batch.hpp"

namespace octavo::cuda {

// linear_sm90.cpp
Status linear_e4m3_row_sm90(const LinearArgs& args);
Status linear_e4m3_row_fast_sm90(const LinearArgs& args);
Status linear_e4m3_block_sm90(const LinearArgs& args);
Status linear_bf16_sm90(const LinearArgs& args);
Status linear_batch_e4m3_row_sm90(const LinearArgs& args, const LinearBatch& batch);
Status linear_batch_e4m3_row_fast_sm90(const LinearArgs& args, const LinearBatch& batch);
Status linear_batch_bf16_sm90(const LinearArgs& args, const LinearBatch& batch);

// gradients_bf16_sm90.cpp
Status grad_input_bf16_sm90(const GradInputArgs& args);
Status grad_weight_bf16_sm90(const GradWeightArgs& args);

// gradients_e4m3_sm90.cpp
Status grad_input_e4m3_row_sm90(const GradInputArgs& args);
Status grad_weight_e4m3_row_sm90(const GradWeightArgs& args);
Status gradients_e4m3_row_sm90(const GradInputArgs& input, const GradWeightArgs& weight);

// operands.cpp: a matrix as the memory accelerator reads it, rows of `ld` elements at addresses that are multiples of
// 16 bytes: itself, or a copy that lives as long as `scratch`.
struct Operand {
  const void* data = nullptr;
  std::int64_t ld = 0;
  std::int64_t batch = 0;  // elements from matrix to matrix of a series
};

// `x` in its own type, zeros up to `rows` x `cols`. Copied where it is smaller or not aligned. A series has x's rows.
Status padded_operand(const MatrixView& x, std::int64_t rows, std::int64_t cols, cudaStream_t stream,
                      StreamBuffer& scratch, Operand& out, const Series& series = {});

// `x` [m, n] (f32, bf16, or codes with `scale` of rows or of 128 x 128) in BF16, zeros up to `rows` x `cols`. BF16 is
// copied where it must.
Status bf16_operand(const MatrixView& x, const float* scale, std::int64_t rows, std::int64_t cols, cudaStream_t stream,
                    StreamBuffer& scratch, Operand& out, Scaling scaling = Scaling::row, const Series& series = {});

// Whether the memory accelerator can address rows that start there, `row_bytes` apart.
bool rows_are_aligned(const void* data, std::int64_t row_bytes);

// Elements from row to row; of a single row, enough for it.
std::int64_t ld_of(const MatrixView& x);

// Whether a device can read and write at the addresses of a gradient's call.
Status expect_readable(const GradInputArgs& args);
Status expect_readable(const GradWeightArgs& args);

Residual residual_of(const MatrixView& residual);

// The fastest tile for it, run; `request` says what `g` does not (operands' order, product).
Status run_best(const TileRequest& request, const Gemm& g, cudaStream_t stream);

// What the choice of a tile depends on, of a GEMM whose operands are set.
TileRequest request_of(const Gemm& g, Product product, Major x_major = Major::k, Major w_major = Major::k);

}  // namespace octavo::cuda
