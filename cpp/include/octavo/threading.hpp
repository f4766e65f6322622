// One static partition over the threads that are already there.
#pragma once

#include <cstdint>
#include <type_traits>

namespace octavo {

// Threads the next parallel region may use. When torch is loaded this is torch.get_num_threads(): both read the same
// OpenMP runtime. Otherwise hardware concurrency, or what set_threads() said.
int threads();
void set_threads(int n);  // the pool of a process without torch

// The OpenMP runtime torch already runs is borrowed when it is loaded (found at run time, never linked): a second pool
// beside its spinning workers costs both sides a factor of 2 to 10.
bool borrows_openmp();

namespace detail {
using RegionBody = void (*)(void* context, int thread, int count);
void run_region(int count, RegionBody body, void* context);
}  // namespace detail

// Calls body(thread, count) once on each of `count` threads (count <= 1: on the caller alone). Inside a region it runs
// serially. body must not throw.
template <class Body>
void parallel_region(int count, Body&& body) {
  if (count <= 1) {
    body(0, 1);
    return;
  }
  using Plain = std::remove_reference_t<Body>;
  detail::run_region(
      count, [](void* context, int thread, int n) { (*static_cast<Plain*>(context))(thread, n); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

struct Range {
  std::int64_t begin, end;
};

// Part `thread` of `count` of [0, n), cut at multiples of `grain`.
inline Range partition(std::int64_t n, int thread, int count, std::int64_t grain = 1) {
  const std::int64_t units = (n + grain - 1) / grain;
  const std::int64_t begin = units * thread / count * grain, end = units * (thread + 1) / count * grain;
  return {begin < n ? begin : n, end < n ? end : n};
}

}  // namespace octavo
