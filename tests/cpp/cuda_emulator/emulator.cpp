#include "emulator.hpp"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace octavo::cuda_emulator {
namespace {

constexpr std::size_t kStackBytes = 256 << 10;

enum class State { ready, at_block, at_warp, done };

struct Fiber {
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStackBytes);
  ucontext_t context;
  uint3 index;
  State state;
  unsigned mask;  // what it waits with at a warp's call
  int kind;
  std::uint64_t value;
  std::array<std::uint64_t, 32> received;
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::size_t threads;  // of the block: the first so many fibers
std::size_t current;
ucontext_t scheduler;
const std::function<void()>* body;
std::unique_ptr<unsigned char[]> shared;
std::uint64_t order_seed = 0;

// The sanitizer wants to know on which stack we are.
void leave_for(const void* stack, std::size_t bytes, void** kept) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(kept, stack, bytes);
#else
  (void)stack, (void)bytes, (void)kept;
#endif
}
const void* scheduler_stack;
std::size_t scheduler_bytes;
void arrived(void* kept, bool from_scheduler) {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack;
  std::size_t bytes;
  __sanitizer_finish_switch_fiber(kept, &stack, &bytes);
  if (from_scheduler) scheduler_stack = stack, scheduler_bytes = bytes;
#else
  (void)kept, (void)from_scheduler;
#endif
}

void enter() {
  arrived(nullptr, true);
  (*body)();
  fibers[current]->state = State::done;
  leave_for(scheduler_stack, scheduler_bytes, nullptr);
  setcontext(&scheduler);
}

void wait(State state) {
  Fiber& fiber = *fibers[current];
  fiber.state = state;
  void* kept = nullptr;
  leave_for(scheduler_stack, scheduler_bytes, &kept);
  swapcontext(&fiber.context, &scheduler);
  arrived(kept, true);
}

void resume(std::size_t thread) {
  current = thread;
  Fiber& fiber = *fibers[thread];
  threadIdx = fiber.index;
  void* kept = nullptr;
  leave_for(fiber.stack.get(), kStackBytes, &kept);
  swapcontext(&scheduler, &fiber.context);
  arrived(kept, false);
}

std::size_t end_of_warp(std::size_t first) { return std::min(first + 32, threads); }

// Lets the lanes of a warp go on whose whole mask has come to the same call.
bool release_warp(std::size_t first) {
  bool any = false;
  for (std::size_t t = first; t < end_of_warp(first); ++t) {
    if (fibers[t]->state != State::at_warp) continue;
    const unsigned mask = fibers[t]->mask;
    const int kind = fibers[t]->kind;
    bool complete = true;
    for (std::size_t i = 0; i < 32; ++i) {
      if ((mask >> i & 1) == 0) continue;
      const Fiber* f = first + i < threads ? fibers[first + i].get() : nullptr;
      complete &= f != nullptr && f->state == State::at_warp && f->mask == mask && f->kind == kind;
    }
    if (!complete) continue;
    std::array<std::uint64_t, 32> values{};
    for (std::size_t i = 0; i < 32; ++i)
      if ((mask >> i & 1) != 0) values[i] = fibers[first + i]->value;
    for (std::size_t i = 0; i < 32; ++i)
      if ((mask >> i & 1) != 0) fibers[first + i]->received = values, fibers[first + i]->state = State::ready;
    any = true;
  }
  return any;
}

bool release_block() {
  const auto waits = [](State state) {
    return std::all_of(fibers.begin(), fibers.begin() + static_cast<std::ptrdiff_t>(threads),
                       [&](const auto& f) { return f->state == state; });
  };
  if (!waits(State::at_block)) return false;
  for (std::size_t t = 0; t < threads; ++t) fibers[t]->state = State::ready;
  return true;
}

// The threads that may, each as far as the next wait, then those that these waits let go on.
bool step_warp(std::size_t first, std::mt19937_64& random) {
  std::vector<std::size_t> order(end_of_warp(first) - first);
  std::iota(order.begin(), order.end(), first);
  if (order_seed != 0) std::shuffle(order.begin(), order.end(), random);
  for (const std::size_t t : order)
    if (fibers[t]->state == State::ready) resume(t);
  return release_warp(first);
}

void prepare(Fiber& fiber, dim3 block, unsigned thread) {
  fiber.index = {thread % block.x, thread / block.x % block.y, thread / block.x / block.y};
  fiber.state = State::ready;
  getcontext(&fiber.context);
  fiber.context.uc_stack = {fiber.stack.get(), 0, kStackBytes};
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
}

void run_block(dim3 block, std::mt19937_64& random) {
  for (std::size_t t = 0; t < threads; ++t) prepare(*fibers[t], block, static_cast<unsigned>(t));
  std::vector<std::size_t> warps((threads + 31) / 32);
  do {
    for (std::size_t w = 0; w < warps.size(); ++w) warps[w] = 32 * w;
    if (order_seed == 0) {  // all warps abreast
      for (bool any = true; any;) {
        any = false;
        for (const std::size_t first : warps) any |= step_warp(first, random);
      }
    } else {  // one warp after the other, each as far as the block's next barrier
      std::shuffle(warps.begin(), warps.end(), random);
      for (const std::size_t first : warps)
        while (step_warp(first, random)) {
        }
    }
  } while (release_block());
  for (std::size_t t = 0; t < threads; ++t)
    if (current = t, threadIdx = fibers[t]->index; fibers[t]->state != State::done)
      fail("waits for threads that will not come: a barrier or warp call that not all of them reach");
}

}  // namespace

void wait_for_block() { wait(State::at_block); }

const std::array<std::uint64_t, 32>& exchange(unsigned mask, int kind, std::uint64_t value) {
  Fiber& fiber = *fibers[current];
  if ((mask >> lane() & 1) == 0) fail("a warp call from a lane outside its mask");
  fiber.mask = mask;
  fiber.kind = kind;
  fiber.value = value;
  wait(State::at_warp);
  return fiber.received;
}

void fail(const char* what) {
  std::fprintf(stderr, "cuda emulator: block (%u, %u), thread (%u, %u): %s\n", blockIdx.x, blockIdx.y, threadIdx.x,
               threadIdx.y, what);
  std::abort();
}

unsigned char* dynamic_shared() { return shared.get(); }

void order_threads(std::uint64_t seed) { order_seed = seed; }

bool run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& thread) {
  threads = std::size_t{block.x} * block.y * block.z;
  const std::size_t blocks = std::size_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > 1024 || blocks == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535 ||
      shared_bytes > 48 << 10)
    return false;
  while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
  body = &thread;
  gridDim = grid;
  blockDim = block;
  std::mt19937_64 random(order_seed);
  std::vector<std::size_t> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  if (order_seed != 0) std::shuffle(order.begin(), order.end(), random);
  for (const std::size_t b : order) {
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    shared = std::make_unique<unsigned char[]>(shared_bytes);
    std::memset(shared.get(), 0xff, shared_bytes);  // NaN
    run_block(block, random);
  }
  return true;
}

}  // namespace octavo::cuda_emulator
