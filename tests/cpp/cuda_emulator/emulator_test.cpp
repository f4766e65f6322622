// The emulator finds what it is there for: kernels that are wrong only on a device, or only sometimes.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "device/launch.cuh"
#include "device/row_groups.cuh"
#include "orders.hpp"

namespace octavo::testing {
namespace {

template <class... P, class... A>
Status run(void (*kernel)(P...), unsigned blocks, unsigned threads, const A&... arguments) {
  return cuda::launch("test", kernel, dim3(blocks), threads, 64, nullptr, arguments...);
}

__global__ void sum_block(const float* x, float* sums) {
  cuda::wait_for_previous_kernels();
  const float sum = cuda::sum_group<cuda::kRowThreads>(x[blockIdx.x * blockDim.x + threadIdx.x]);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

TEST(CudaEmulator, RunsBlocksOfThreads) {
  std::vector<float> x(2 * cuda::kRowThreads), sums(2);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  in_every_order([&] {
    ASSERT_TRUE(run(sum_block, 2, cuda::kRowThreads, static_cast<const float*>(x.data()), sums.data()).ok());
    EXPECT_EQ(sums, (std::vector<float>{255.0f * 128.0f, 255.0f * 128.0f + 256.0f * 256.0f}));
  });
}

__global__ void reverse_without_barrier(float* x) {
  cuda::wait_for_previous_kernels();
  float* shared = cuda::dynamic_shared<float>();
  if (threadIdx.x < 16) shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (threadIdx.x < 16) x[threadIdx.x] = shared[15 - threadIdx.x];
}

TEST(CudaEmulator, AMissingBarrierShows) {
  std::vector<std::vector<float>> found;
  in_every_order([&] {
    std::vector<float> x(16);
    ASSERT_TRUE(run(reverse_without_barrier, 1, 32, x.data()).ok());
    found.push_back(x);
  });
  EXPECT_NE(found[0][0], 15.0f);  // NaN: nobody had written it yet
  EXPECT_NE(std::memcmp(found[0].data(), found[1].data(), 16 * sizeof(float)), 0);
}

// Warp 0 writes its second number into the place that a slower warp has yet to read the first one from.
__global__ void share_twice(float* found) {
  cuda::wait_for_previous_kernels();
  float* shared = cuda::dynamic_shared<float>();
  if (threadIdx.x == 0) shared[0] = 1.0f;
  __syncthreads();
  if (threadIdx.x == 32) found[0] = shared[0];
  if (threadIdx.x == 0) shared[0] = 2.0f;
  __syncthreads();
}

TEST(CudaEmulator, AMissingBarrierBetweenTwoUsesShows) {
  std::vector<float> firsts;
  for (std::uint64_t order = 0; order < 5; ++order) {
    cuda_emulator::order_threads(order);
    float first = 0.0f;
    ASSERT_TRUE(run(share_twice, 1, 64, &first).ok());
    firsts.push_back(first);
  }
  cuda_emulator::order_threads(0);
  const auto right = std::count(firsts.begin(), firsts.end(), 1.0f);
  EXPECT_GT(right, 0);
  EXPECT_LT(right, 5);
}

__global__ void barrier_for_some() {
  cuda::wait_for_previous_kernels();
  if (threadIdx.x < 16) __syncthreads();
}
__global__ void shuffle_with_some() {
  cuda::wait_for_previous_kernels();
  if (threadIdx.x < 16) (void)__shfl_xor_sync(0xffffffffu, 1.0f, 1);
}
__global__ void shuffle_outside_the_mask() {
  cuda::wait_for_previous_kernels();
  if (threadIdx.x < 16) (void)__shfl_xor_sync(0xffffu, 1.0f, 16);
}
__global__ void write_behind(float* x) {
  cuda::wait_for_previous_kernels();
  x[threadIdx.x] = 0.0f;
}
__global__ void write_behind_shared() {
  cuda::wait_for_previous_kernels();
  cuda::dynamic_shared<float>()[threadIdx.x] = 0.0f;
}
__global__ void never_waits(float* x) { x[threadIdx.x] = 0.0f; }
__global__ void waits_in_some_threads() {
  if (threadIdx.x != 5) cuda::wait_for_previous_kernels();
}
__global__ void waits_behind_a_barrier() {
  __syncthreads();
  cuda::wait_for_previous_kernels();
}
__global__ void waits_behind_an_atomic(float* x) {
  atomicAdd(x, 1.0f);
  cuda::wait_for_previous_kernels();
}
__global__ void waits_behind_a_shuffle() {
  (void)__shfl_xor_sync(0xffffffffu, 1.0f, 1);
  cuda::wait_for_previous_kernels();
}

__global__ void count_on(const float* x, float* y) {
  cuda::wait_for_previous_kernels();
  y[threadIdx.x] = x[threadIdx.x] + 1.0f;
}
__global__ void reads_too_early(const float* x, float* y) {
  const float early = x[threadIdx.x];
  cuda::wait_for_previous_kernels();
  y[threadIdx.x] = early + 1.0f;
}
__global__ void writes_too_early(const float*, float* y) {
  y[threadIdx.x] = 7.0f;
  cuda::wait_for_previous_kernels();
}

// Zeros, then `first`, `second` and `third` from one row to the next: the last row.
using Step = void (*)(const float*, float*);
std::vector<float> chain(Step first, Step second, Step third) {
  std::vector<float> rows(4 * 32, 50.0f);
  const auto row = [&](int r) { return rows.data() + 32 * r; };
  {
    const cuda::DeviceGuard one_call(rows.data());
    EXPECT_EQ(cudaMemsetAsync(row(0), 0, 32 * sizeof(float), nullptr), cudaSuccess);
    EXPECT_TRUE(run(first, 1, 32, static_cast<const float*>(row(0)), row(1)).ok());
    EXPECT_TRUE(run(second, 1, 32, static_cast<const float*>(row(1)), row(2)).ok());
    EXPECT_TRUE(run(third, 1, 32, static_cast<const float*>(row(2)), row(3)).ok());
  }
  return {rows.end() - 32, rows.end()};
}

TEST(CudaEmulator, KernelsThatStartEarlyRunAsLateAsTheyMay) {
  const auto all = [](float x) { return std::vector<float>(32, x); };
  for (const bool early : {false, true}) {
    cuda::start_launches_early(early);
    EXPECT_EQ(chain(count_on, count_on, count_on), all(3.0f));
    EXPECT_EQ(chain(count_on, count_on, reads_too_early), all(early ? 51.0f : 3.0f));
    EXPECT_EQ(chain(count_on, reads_too_early, count_on), all(early ? 52.0f : 3.0f));
    EXPECT_EQ(chain(reads_too_early, count_on, count_on), all(early ? 53.0f : 3.0f));  // behind a memset
  }
  std::vector<float> y(32);
  {
    const cuda::DeviceGuard one_call(y.data());
    ASSERT_TRUE(run(writes_too_early, 1, 32, static_cast<const float*>(nullptr), y.data()).ok());
    EXPECT_EQ(y[0], 0.0f);  // not yet
    ASSERT_EQ(cudaMemsetAsync(y.data(), 0, 32 * sizeof(float), nullptr), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
    EXPECT_EQ(y, all(0.0f));
    ASSERT_TRUE(run(count_on, 1, 32, static_cast<const float*>(y.data()), y.data()).ok());
    ASSERT_TRUE(run(writes_too_early, 1, 32, static_cast<const float*>(nullptr), y.data()).ok());
  }
  EXPECT_EQ(y, all(8.0f));  // the 7 came before the kernel that it was to replace
}

TEST(CudaEmulator, LaunchesStartEarlyOnHopperAlone) {
  EXPECT_TRUE(cuda::launches_start_early());
  cuda_emulator::runtime().capability_major = 8;
  EXPECT_FALSE(cuda::launches_start_early());
  cuda_emulator::runtime().capability_major = 9;
  cuda::start_launches_early(false);
  EXPECT_FALSE(cuda::launches_start_early());
  cuda::start_launches_early(true);
}

using CudaEmulatorDeathTest = ::testing::Test;

TEST(CudaEmulatorDeathTest, FaultsStopTheProgram) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH((void)run(barrier_for_some, 1, 32), "waits for threads that will not come");
  EXPECT_DEATH((void)run(shuffle_with_some, 1, 32), "waits for threads that will not come");
  EXPECT_DEATH((void)run(shuffle_outside_the_mask, 1, 32), "reads a lane outside its mask");
  float y[32];
  EXPECT_DEATH((void)run(never_waits, 1, 32, &y[0]), "thread .0, 0.: ends without having waited");
  EXPECT_DEATH((void)run(waits_in_some_threads, 1, 32), "thread .5, 0.: ends without having waited");
  EXPECT_DEATH((void)run(waits_behind_a_barrier, 1, 32), "comes to a barrier without having waited");
  EXPECT_DEATH((void)run(waits_behind_an_atomic, 1, 32, &y[0]), "comes to an atomic without having waited");
  EXPECT_DEATH((void)run(waits_behind_a_shuffle, 1, 32), "comes to a warp's call without having waited");
#if defined(__SANITIZE_ADDRESS__)
  const auto x = std::make_unique<float[]>(31);
  EXPECT_DEATH((void)run(write_behind, 1, 32, x.get()), "heap-buffer-overflow");
  EXPECT_DEATH((void)run(write_behind_shared, 1, 32), "heap-buffer-overflow");
#endif
}

TEST(CudaEmulator, RefusesWhatADeviceRefuses) {
  EXPECT_FALSE(run(barrier_for_some, 0, 32).ok());
  EXPECT_FALSE(run(barrier_for_some, 1, 2048).ok());
  EXPECT_FALSE(cuda::launch("test", barrier_for_some, dim3(1, 70000), 32, 0, nullptr).ok());
  EXPECT_FALSE(cuda::launch("test", barrier_for_some, dim3(1), 32, 49 << 10, nullptr).ok());
}

}  // namespace
}  // namespace octavo::testing
