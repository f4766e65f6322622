// What goes wrong before a kernel runs: no memory, addresses a device cannot read, a device of another kind.
#include "device/device.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <vector>

#include "emulator.hpp"
#include "gemm/layers.hpp"
#include "kernels.hpp"
#include "linear_case.hpp"

namespace octavo::testing {
namespace {

using cuda_emulator::Runtime;
using cuda_emulator::runtime;

class CudaDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    runtime() = Runtime{};
    cuda::start_launches_early(false);
  }
  void TearDown() override {
    runtime() = Runtime{};
    cuda::use_scratch_source({});
    cuda::start_launches_early(true);
  }
};

void refuse(int from, int count) {
  runtime().allocations = 0;
  runtime().refused_from = from;
  runtime().refusals = count;
}

bool says(const Status& status, const char* words) { return status.message().find(words) != std::string::npos; }

TEST_F(CudaDevice, MemoryIsAskedForAgainOnceThePoolIsTrimmed) {
  refuse(0, 1);
  cuda::StreamBuffer buffer(nullptr);
  EXPECT_TRUE(buffer.allocate(100).ok());
  EXPECT_NE(buffer.as<char>(), nullptr);
  EXPECT_EQ(runtime().trims, 1);
  EXPECT_EQ(runtime().last_error, cudaSuccess);  // the next kernel is not blamed
}

TEST_F(CudaDevice, NoMemorySaysHowMuchIsNeededAndHowMuchThereIs) {
  for (const bool capturing : {false, true}) {
    runtime().capturing = capturing;
    refuse(0, 2);
    cuda::StreamBuffer buffer(nullptr);
    const Status status = buffer.allocate((std::size_t{5} << 20) / 2);
    EXPECT_EQ(status.code(), Code::out_of_memory);
    EXPECT_TRUE(says(status, "needs 2.5 MiB of scratch memory; device 0 has 3.0 MiB of 81920.0 MiB free; use smaller"))
        << status.message();
    EXPECT_EQ(buffer.as<char>(), nullptr);
    EXPECT_EQ(runtime().allocations, capturing ? 1 : 2);  // a capture cannot wait for the stream
    EXPECT_EQ(runtime().last_error, cudaSuccess);
  }
}

int g_given = 0, g_returned = 0;
bool g_empty = false, g_another_stream = false;

Status give(std::size_t bytes, int device, cudaStream_t stream, void*& memory, void*& owner) {
  EXPECT_EQ(device, 0);
  EXPECT_EQ(stream, nullptr);
  if (g_another_stream) return {};
  if (g_empty) return {Code::out_of_memory, "the caller's allocator has its own words"};
  ++g_given;
  owner = memory = std::malloc(bytes);
  return {};
}

void take_back(void* owner) {
  ++g_returned;
  std::free(owner);
}

TEST_F(CudaDevice, ACallersAllocatorOwnsAllScratchMemory) {
  cuda::use_scratch_source({give, take_back});
  g_given = g_returned = 0;
  LinearCase layer({.m = 5, .n = 24, .k = 17, .x = DType::f32, .y = DType::f32, .norm = NormKind::layer},
                   Numerics::e4m3_row);
  ASSERT_TRUE(cuda::linear_e4m3_row_sm90(layer.args()).ok());
  EXPECT_LE(layer.error(), 1e-5);
  EXPECT_GE(g_given, 3);  // the padded weight, codes and scales of x
  EXPECT_EQ(g_returned, g_given);
  EXPECT_EQ(runtime().allocations, 0);
  g_empty = true;
  const Status status = cuda::linear_e4m3_row_sm90(layer.args());
  g_empty = false;
  EXPECT_EQ(status.code(), Code::out_of_memory);
  EXPECT_TRUE(says(status, "MiB of scratch memory; the caller's allocator has its own words")) << status.message();
  EXPECT_EQ(g_returned, g_given);
  g_another_stream = true;  // it cannot order its memory on this one
  const int before = g_given;
  ASSERT_TRUE(cuda::linear_e4m3_row_sm90(layer.args()).ok());
  g_another_stream = false;
  EXPECT_EQ(g_given, before);
  EXPECT_GE(runtime().allocations, 3);
}

// Refuses the first, second, ... allocation of a call until it has all it needs. Returns how many those were.
template <class Call>
int without_memory(Call&& call) {
  for (int from = 0;; ++from) {
    refuse(from, 1 << 20);
    const Status status = call();
    runtime().refusals = 0;
    if (status.ok()) return from;
    EXPECT_EQ(status.code(), Code::out_of_memory) << status.message();
    EXPECT_TRUE(call().ok());  // nothing lasts
    if (from > 20) return -1;
  }
}

TEST_F(CudaDevice, EveryCallWithoutMemorySaysSo) {
  for (const NormKind norm : {NormKind::none, NormKind::layer}) {
    const LinearSpec spec{.m = 5, .n = 23, .k = 17, .x = DType::f32, .y = DType::f32, .norm = norm};
    LinearCase narrow(spec, Numerics::e4m3_row), wide(spec, Numerics::bf16);
    EXPECT_GE(without_memory([&] { return cuda::linear_e4m3_row_sm90(narrow.args()); }), 3);
    EXPECT_GE(without_memory([&] { return cuda::linear_bf16_sm90(wide.args()); }), 2);
  }
  LinearCase layer({.m = 5, .n = 23, .k = 17}, Numerics::e4m3_row);
  Matrix grad(DType::f32, 5, 23), grad_x(DType::f32, 5, 17), grad_weight(DType::f32, 23, 17);
  const GradInputArgs input{grad.view(), &*layer.weight, grad_x.view()};
  const GradWeightArgs weight{grad.view(), layer.x.view(), grad_weight.view()};
  EXPECT_GE(without_memory([&] { return cuda::grad_input_e4m3_row_sm90(input); }), 3);
  EXPECT_GE(without_memory([&] { return cuda::grad_weight_e4m3_row_sm90(weight); }), 4);
  EXPECT_GE(without_memory([&] { return cuda::grad_weight_bf16_sm90(weight); }), 2);

  std::vector<float> rows(12, 1.0f), out(8), bag_grad(8, 1.0f);
  const TableView table{"t", rows.data(), 3, 4, 4, DType::f32};
  const std::vector<std::int64_t> values{0, 2, 1}, offsets{0, 2, 3};
  const BagIndices indices{2, 1, values.data(), 3, offsets.data()};
  const MatrixView pooled{out.data(), 2, 4, 4, DType::f32};
  EXPECT_EQ(without_memory([&] { return cuda::bag_forward({&table, indices, Bounds::error, pooled}); }), 1);
  const BagBackwardArgs backward{&table, indices, Bounds::error, {bag_grad.data(), 2, 4, 4, DType::f32}, {}};
  EXPECT_EQ(without_memory([&] { return cuda::bag_backward(backward); }), 1);
}

TEST_F(CudaDevice, AddressesThatADeviceCannotReadAreNamed) {
  LinearCase layer({.m = 3, .n = 8, .k = 16, .x = DType::f32, .y = DType::f32}, Numerics::bf16);
  std::vector<char> bytes(4096);
  const auto odd = [&](const MatrixView& view) {
    return MatrixView{bytes.data() + 1, view.rows, view.cols, view.row_stride, view.dtype};
  };
  const auto expect = [](const Status& status, const char* words) {
    EXPECT_EQ(status.code(), Code::invalid_argument);
    EXPECT_TRUE(says(status, words)) << status.message();
  };
  LinearArgs args = layer.args();
  args.x = odd(args.x);
  expect(cuda::linear_bf16_sm90(args), "linear: the address of x is no multiple of its 4-byte elements");
  args = layer.args();
  args.epilogue.bias = reinterpret_cast<const float*>(bytes.data() + 2);
  expect(cuda::linear_bf16_sm90(args), "linear: the address of bias is");
  args = layer.args();
  args.y = odd(args.y);
  expect(cuda::linear_bf16_sm90(args), "linear: the address of out is");

  const QuantizeArgs quantize{.x = odd(layer.x.view()),
                              .format = DType::e4m3,
                              .scaling = Scaling::row,
                              .codes = bytes.data(),
                              .scale = reinterpret_cast<float*>(bytes.data())};
  expect(cuda::quantize_row(quantize), "quantize: the address of x is");

  QuantizeArgs blocks = quantize;
  blocks.scaling = Scaling::block_1x128;
  expect(cuda::quantize_block(blocks), "quantize: the address of x is");

  std::vector<float> rows(12, 1.0f), out(8);
  const TableView table{"t", rows.data(), 3, 4, 4, DType::f32};
  const std::int64_t offsets[] = {0, 1, 1};
  const auto* values = reinterpret_cast<const std::int64_t*>(bytes.data() + 4);
  const BagIndices indices{2, 1, values, 1, offsets};
  const MatrixView pooled{out.data(), 2, 4, 4, DType::f32};
  expect(cuda::bag_forward({&table, indices, Bounds::error, pooled}), "bag_forward: the address of values is");
  expect(cuda::bag_backward({&table, indices, Bounds::error, pooled, {}}), "bag_backward: the address of values is");
  const TableView odd_rows{"t", bytes.data() + 2, 3, 4, 4, DType::f32};
  const std::int64_t one = 0;
  expect(cuda::bag_forward({&odd_rows, {2, 1, &one, 1, offsets}, Bounds::error, pooled}),
         "bag_forward: the address of the rows of a table is");
  const IdSlots map;
  std::int64_t row = 0;
  expect(cuda::find_rows({&map, indices, &row}), "find_rows: the address of values is");
}

TEST_F(CudaDevice, CodeForHopperRunsOnNoOtherDevice) {
  runtime().capability_major = 8;
  LinearCase layer({.m = 3, .n = 8, .k = 16}, Numerics::bf16);
  const Status status = cuda::linear_bf16_sm90(layer.args());
  EXPECT_EQ(status.code(), Code::unsupported);
  EXPECT_TRUE(says(status,
                   "linear: this kernel is for devices of compute capability 9.0, the tensors are on device 0 "
                   "with 8.0"))
      << status.message();
}

}  // namespace
}  // namespace octavo::testing
