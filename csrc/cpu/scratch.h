// Memory of the thread at hand for what would be too large for its stack, which may be 128 KiB (musl, OMP_STACKSIZE) where
// a solver and its buffers take several times that. It is handed out like a stack, so taking some costs a few
// instructions and finds it in the cache; a thread keeps at most kScratch bytes for its next call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

#include "isa.h"

namespace hypersimplex {
namespace cpu {

constexpr size_t kScratch = size_t(1) << 20;

// On a cache line and not initialised. What was taken last is given back first.
void* take_scratch(size_t bytes);
void return_scratch(void* memory, size_t bytes) noexcept;

class ScratchMemory {
 public:
  explicit ScratchMemory(size_t bytes) : bytes_(bytes), begin_(take_scratch(bytes)) {}
  ScratchMemory(const ScratchMemory&) = delete;
  ~ScratchMemory() { return_scratch(begin_, bytes_); }
  void* begin() const { return begin_; }

 private:
  const size_t bytes_;
  void* const begin_;
};

}  // namespace cpu

namespace HYPERSIMPLEX_ISA {

// `count` items that live as long as their scope; numbers are not initialised.
template <class T>
class ScratchArray {
 public:
  explicit ScratchArray(int64_t count)
      : count_(count), memory_(size_t(count) * sizeof(T)), items_(static_cast<T*>(memory_.begin())) {
    for (int64_t i = 0; i < count_; ++i) new (items_ + i) T;
  }
  ~ScratchArray() {
    for (int64_t i = 0; i < count_; ++i) items_[i].~T();
  }
  operator T*() const { return items_; }

 private:
  const int64_t count_;
  const cpu::ScratchMemory memory_;
  T* const items_;
};

// One item, made of these arguments.
template <class T>
class Scratch {
 public:
  template <class... Arguments>
  explicit Scratch(Arguments&&... arguments) : memory_(sizeof(T)), item_(static_cast<T*>(memory_.begin())) {
    if constexpr (sizeof...(arguments) == 0)
      new (item_) T;
    else
      new (item_) T(std::forward<Arguments>(arguments)...);
  }
  ~Scratch() { item_->~T(); }
  T& operator*() const { return *item_; }
  T* operator->() const { return item_; }

 private:
  const cpu::ScratchMemory memory_;
  T* const item_;
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
