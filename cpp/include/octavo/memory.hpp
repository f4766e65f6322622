// Aligned, huge-page-friendly memory.
#pragma once

#include <cstddef>
#include <memory>

namespace octavo {

// 64-byte aligned; from 2 MiB up aligned to 2 MiB and advised to use transparent huge pages. Uninitialised. Large ones
// are kept for the next of their size when they are freed: a training step makes its weights' layouts anew, and new
// pages cost more than filling them.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t bytes);

  void* data() const { return data_.get(); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }
  std::size_t size() const { return size_; }

 private:
  struct Free {
    std::size_t bytes;
    void operator()(void* p) const;
  };
  std::unique_ptr<void, Free> data_;
  std::size_t size_ = 0;
};

// This thread's scratch memory in slot 0..7: grows, never shrinks, valid until the thread's next call with the same
// slot.
void* scratch(int slot, std::size_t bytes);

// Asks the kernel for transparent huge pages on the whole pages inside [data, data + bytes). True when it agreed.
bool advise_huge_pages(const void* data, std::size_t bytes);

}  // namespace octavo
