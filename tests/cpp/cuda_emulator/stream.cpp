// The one stream: at once, or as late as a device may that starts kernels early.
#include <deque>
#include <utility>

#include "device/device.hpp"
#include "emulator.hpp"

namespace octavo::cuda_emulator {
namespace {

using Before = std::function<void()>;
std::deque<std::function<void(const Before&)>> queue;
std::size_t done = 0;  // of the queue

// The first `count` of the queue. The last of them starts before those in front of it, which its first wait lets run.
void run_first(std::size_t count) {
  if (count <= done) return;
  queue[count - 1]([count] { run_first(count - 1); });
  run_first(count - 1);
  done = count;
}

void append(std::function<void(const Before&)> work) {
  queue.push_back(std::move(work));
  if (!runtime().in_call) finish_stream();
}

// In tests that say nothing: it asks more of kernels.
[[maybe_unused]] const bool at_first = (cuda::start_launches_early(true), true);

}  // namespace

void finish_stream() {
  run_first(queue.size());
  queue.clear();
  done = 0;
}

void in_stream(std::function<void()> work) {
  append([work = std::move(work)](const Before& before) {
    before();
    work();
  });
}

bool launch(dim3 grid, dim3 block, std::size_t shared_bytes, bool early, std::function<void()> thread) {
  if (!is_launchable(grid, block, shared_bytes)) return false;
  append([=, thread = std::move(thread)](const Before& before) {
    if (!early) before();
    run(grid, block, shared_bytes, thread, before);
  });
  return true;
}

}  // namespace octavo::cuda_emulator
