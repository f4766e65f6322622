#include "emulator.hpp"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace octavo::cuda_emulator {
namespace {

constexpr std::size_t kStackBytes = 256 << 10;

enum class State { ready, at_start, at_block, at_warp, done };

struct Fiber {
  std::unique_ptr<char[]> stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
  ucontext_t context;
  uint3 index;
  State state;
  bool waited;    // for the kernels before
  unsigned mask;  // what it waits with at a warp's call
  int kind;
  std::uint64_t value;
  std::array<std::uint64_t, 32> received;
};
using Fibers = std::vector<std::unique_ptr<Fiber>>;

// A launch under way. One that started early has another inside it while its first block waits for that.
struct Running {
  dim3 grid, block;
  const std::function<void()>& body;
  const std::function<void()>& before;  // what the first block waits for
  Fibers& fibers;
  std::size_t threads;  // of the block: the first so many fibers
  std::size_t current = 0;
  ucontext_t scheduler{};
  const void* scheduler_stack = nullptr;
  std::size_t scheduler_bytes = 0;
  uint3 block_index{};
  std::unique_ptr<unsigned char[]> shared{};
  bool started = false;  // what is before has run
};
Running* running = nullptr;
std::vector<std::unique_ptr<Fibers>> unused_fibers;
std::uint64_t order_seed = 0;

Fiber& fiber() { return *running->fibers[running->current]; }

// What a kernel finds in its built-in variables.
void show_indices() {
  gridDim = running->grid;
  blockDim = running->block;
  blockIdx = running->block_index;
  threadIdx = fiber().index;
}

// The sanitizer wants to know on which stack we are.
void leave_for(const void* stack, std::size_t bytes, void** kept) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(kept, stack, bytes);
#else
  (void)stack, (void)bytes, (void)kept;
#endif
}
void arrived(void* kept, bool from_scheduler) {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack;
  std::size_t bytes;
  __sanitizer_finish_switch_fiber(kept, &stack, &bytes);
  if (from_scheduler) running->scheduler_stack = stack, running->scheduler_bytes = bytes;
#else
  (void)kept, (void)from_scheduler;
#endif
}

void enter() {
  arrived(nullptr, true);
  running->body();
  expect_waited("ends");
  fiber().state = State::done;
  leave_for(running->scheduler_stack, running->scheduler_bytes, nullptr);
  setcontext(&running->scheduler);
}

void wait(State state) {
  Fiber& own = fiber();
  own.state = state;
  void* kept = nullptr;
  leave_for(running->scheduler_stack, running->scheduler_bytes, &kept);
  swapcontext(&own.context, &running->scheduler);
  arrived(kept, true);
}

void resume(std::size_t thread) {
  running->current = thread;
  show_indices();
  void* kept = nullptr;
  leave_for(fiber().stack.get(), kStackBytes, &kept);
  swapcontext(&running->scheduler, &fiber().context);
  arrived(kept, false);
}

std::size_t end_of_warp(std::size_t first) { return std::min(first + 32, running->threads); }

// Lets the lanes of a warp go on whose whole mask has come to the same call.
bool release_warp(std::size_t first) {
  Fibers& fibers = running->fibers;
  bool any = false;
  for (std::size_t t = first; t < end_of_warp(first); ++t) {
    if (fibers[t]->state != State::at_warp) continue;
    const unsigned mask = fibers[t]->mask;
    const int kind = fibers[t]->kind;
    bool complete = true;
    for (std::size_t i = 0; i < 32; ++i) {
      if ((mask >> i & 1) == 0) continue;
      const Fiber* f = first + i < running->threads ? fibers[first + i].get() : nullptr;
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
  Fibers& fibers = running->fibers;
  const auto end = fibers.begin() + static_cast<std::ptrdiff_t>(running->threads);
  if (!std::all_of(fibers.begin(), end, [](const auto& f) { return f->state == State::at_block; })) return false;
  for (auto f = fibers.begin(); f != end; ++f) (*f)->state = State::ready;
  return true;
}

// The threads that may, each as far as the next wait, then those that these waits let go on.
bool step_warp(std::size_t first, std::mt19937_64& random) {
  std::vector<std::size_t> order(end_of_warp(first) - first);
  std::iota(order.begin(), order.end(), first);
  if (order_seed != 0) std::shuffle(order.begin(), order.end(), random);
  for (const std::size_t t : order)
    if (running->fibers[t]->state == State::ready) resume(t);
  return release_warp(first);
}

void prepare(Fiber& f, dim3 block, unsigned thread) {
  f.index = {thread % block.x, thread / block.x % block.y, thread / block.x / block.y};
  f.state = State::ready;
  f.waited = false;
  getcontext(&f.context);
  f.context.uc_stack = {f.stack.get(), 0, kStackBytes};
  f.context.uc_link = nullptr;
  makecontext(&f.context, enter, 0);
}

void run_block(std::mt19937_64& random) {
  const std::size_t threads = running->threads;
  for (std::size_t t = 0; t < threads; ++t) prepare(*running->fibers[t], running->block, static_cast<unsigned>(t));
  if (!running->started) {
    for (std::size_t t = 0; t < threads; ++t) resume(t);
    running->before();
    running->started = true;
    for (std::size_t t = 0; t < threads; ++t) running->fibers[t]->state = State::ready;
  }
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
    if (running->current = t, show_indices(); fiber().state != State::done)
      fail("waits for threads that will not come: a barrier or warp call that not all of them reach");
}

}  // namespace

void wait_for_block() {
  expect_waited("comes to a barrier");
  wait(State::at_block);
}

const std::array<std::uint64_t, 32>& exchange(unsigned mask, int kind, std::uint64_t value) {
  expect_waited("comes to a warp's call");
  Fiber& own = fiber();
  if ((mask >> lane() & 1) == 0) fail("a warp call from a lane outside its mask");
  own.mask = mask;
  own.kind = kind;
  own.value = value;
  wait(State::at_warp);
  return own.received;
}

void wait_for_previous_kernels() {
  if (!running->started) wait(State::at_start);
  fiber().waited = true;
}

void expect_waited(const char* what) {
  if (fiber().waited) return;
  fail((std::string(what) + " without having waited for the kernels before: begin with wait_for_previous_kernels()")
           .c_str());
}

void fail(const char* what) {
  std::fprintf(stderr, "cuda emulator: block (%u, %u), thread (%u, %u): %s\n", blockIdx.x, blockIdx.y, threadIdx.x,
               threadIdx.y, what);
  std::abort();
}

unsigned char* dynamic_shared() { return running->shared.get(); }

void order_threads(std::uint64_t seed) { order_seed = seed; }

bool is_launchable(dim3 grid, dim3 block, std::size_t shared_bytes) {
  const std::size_t threads = std::size_t{block.x} * block.y * block.z;
  const std::size_t blocks = std::size_t{grid.x} * grid.y * grid.z;
  return threads != 0 && threads <= 1024 && blocks != 0 && grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535 &&
         shared_bytes <= 48 << 10;
}

void run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& thread,
         const std::function<void()>& before) {
  const std::size_t blocks = std::size_t{grid.x} * grid.y * grid.z;
  if (unused_fibers.empty()) unused_fibers.push_back(std::make_unique<Fibers>());
  std::unique_ptr<Fibers> fibers = std::move(unused_fibers.back());
  unused_fibers.pop_back();
  Running own{grid, block, thread, before, *fibers, std::size_t{block.x} * block.y * block.z};
  while (fibers->size() < own.threads) fibers->push_back(std::make_unique<Fiber>());
  Running* const outer = std::exchange(running, &own);

  std::mt19937_64 random(order_seed);
  std::vector<std::size_t> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  if (order_seed != 0) std::shuffle(order.begin(), order.end(), random);
  for (const std::size_t b : order) {
    own.block_index = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                       static_cast<unsigned>(b / grid.x / grid.y)};
    own.shared = std::make_unique<unsigned char[]>(shared_bytes);
    std::memset(own.shared.get(), 0xff, shared_bytes);  // NaN
    run_block(random);
  }

  running = outer;
  if (running != nullptr) show_indices();
  unused_fibers.push_back(std::move(fibers));
}

}  // namespace octavo::cuda_emulator
