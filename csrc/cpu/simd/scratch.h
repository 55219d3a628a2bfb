// Memory of the thread at hand for what would be too large for its stack, which may be 128 KiB (musl, OMP_STACKSIZE)
// where a solver and its buffers take several times that. It is handed out like a stack, so taking some costs a few
// instructions and finds it in the cache; a thread keeps at most ScratchStack::kBytes for its next call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

#include "cpu/simd/isa.h"

namespace hypersimplex {
namespace cpu {

struct ScratchStack {
  static constexpr size_t kBytes = size_t(1) << 20;
  static constexpr std::align_val_t kLine{64};
  char* begin;  // null before a thread first takes some
  size_t used;

  void allocate();
};
extern __thread ScratchStack scratch_stack;  // unlike thread_local never asks whether it has been made

// On a cache line and not initialised. Scopes give back first what they took last.
class ScratchMemory {
 public:
  explicit ScratchMemory(size_t bytes) : bytes_((bytes + 63) / 64 * 64) {
    if (bytes == 0) return;
    ScratchStack& stack = scratch_stack;
    if (!stack.begin) stack.allocate();
    if (bytes_ > ScratchStack::kBytes - stack.used) {  // seldom, and not kept
      begin_ = ::operator new(bytes_, ScratchStack::kLine);
      return;
    }
    owner_ = &stack;
    begin_ = stack.begin + stack.used;
    stack.used += bytes_;
  }
  ScratchMemory(const ScratchMemory&) = delete;
  ~ScratchMemory() {
    if (owner_)
      owner_->used -= bytes_;
    else if (begin_)
      ::operator delete(begin_, ScratchStack::kLine);
  }
  void* begin() const { return begin_; }  // null where no bytes were asked for

 private:
  const size_t bytes_;
  ScratchStack* owner_ = nullptr;
  void* begin_ = nullptr;
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
