#include "octavo/memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <iterator>
#include <mutex>
#include <new>
#include <utility>

namespace octavo {
namespace {
constexpr std::size_t kHuge = std::size_t{2} << 20;
constexpr int kScratchSlots = 8;

// Freed buffers of 256 KiB and more, at most 96 MiB of them; the oldest goes first.
constexpr std::size_t kKeepFrom = std::size_t{256} << 10, kKeepAtMost = std::size_t{96} << 20;
struct Kept {
  std::mutex mutex;
  std::deque<std::pair<void*, std::size_t>> buffers;
  std::size_t bytes = 0;
};
Kept& kept() {
  static auto* buffers = new Kept;  // never destroyed: threads free their scratch memory at exit
  return *buffers;
}

void* take_kept(std::size_t bytes) {
  Kept& pool = kept();
  const std::scoped_lock lock(pool.mutex);
  for (auto it = pool.buffers.rbegin(); it != pool.buffers.rend(); ++it) {
    if (it->second != bytes) continue;
    void* found = it->first;
    pool.buffers.erase(std::next(it).base());
    pool.bytes -= bytes;
    return found;
  }
  return nullptr;
}

void keep(void* p, std::size_t bytes) {
  if (bytes > kKeepAtMost) return std::free(p);
  Kept& pool = kept();
  const std::scoped_lock lock(pool.mutex);
  try {
    pool.buffers.emplace_back(p, bytes);
  } catch (const std::bad_alloc&) {
    return std::free(p);
  }
  pool.bytes += bytes;
  while (pool.bytes > kKeepAtMost) {
    std::free(pool.buffers.front().first);
    pool.bytes -= pool.buffers.front().second;
    pool.buffers.pop_front();
  }
}
}  // namespace

AlignedBuffer::AlignedBuffer(std::size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  const std::size_t alignment = bytes >= kHuge ? kHuge : 64;
  const std::size_t padded = (bytes + alignment - 1) / alignment * alignment;
  if (padded >= kKeepFrom)
    if (void* found = take_kept(padded)) {
      data_ = {found, Free{padded}};
      return;
    }
  data_ = {std::aligned_alloc(alignment, padded), Free{padded}};
  if (!data_) throw std::bad_alloc();
  if (alignment == kHuge) advise_huge_pages(data_.get(), padded);
}

void AlignedBuffer::Free::operator()(void* p) const {
  if (bytes >= kKeepFrom) {
    keep(p, bytes);
  } else {
    std::free(p);
  }
}

void* scratch(int slot, std::size_t bytes) {
  thread_local std::array<AlignedBuffer, kScratchSlots> buffers;
  AlignedBuffer& buffer = buffers[static_cast<std::size_t>(slot)];
  if (buffer.size() < bytes) buffer = AlignedBuffer(bytes + bytes / 4);
  return buffer.data();
}

bool advise_huge_pages(const void* data, std::size_t bytes) {
#ifdef MADV_HUGEPAGE
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + page - 1) / page * page;
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / page * page;
  if (begin >= end || end - begin < kHuge) return false;
  return madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE) == 0;
#else
  (void)data;
  (void)bytes;
  return false;
#endif
}

}  // namespace octavo
