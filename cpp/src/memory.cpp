#include "octavo/memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace octavo {
namespace {
constexpr std::size_t kHuge = std::size_t{2} << 20;
constexpr int kScratchSlots = 8;
}  // namespace

AlignedBuffer::AlignedBuffer(std::size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  const std::size_t alignment = bytes >= kHuge ? kHuge : 64;
  const std::size_t padded = (bytes + alignment - 1) / alignment * alignment;
  data_.reset(std::aligned_alloc(alignment, padded));
  if (!data_) throw std::bad_alloc();
  if (alignment == kHuge) advise_huge_pages(data_.get(), padded);
}

void AlignedBuffer::Free::operator()(void* p) const { std::free(p); }

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
