// Stacks that take turns on one host thread.
#pragma once

#include <cstddef>

#if !(defined(__ELF__) && (defined(__x86_64__) || defined(__aarch64__))) || defined(SIMT_UCONTEXT)
#define SIMT_USE_UCONTEXT 1
#include <ucontext.h>
#endif

namespace simt {

class Fiber {
 public:
  Fiber() = default;  // stands for the host thread's own stack
  explicit Fiber(size_t stack_index);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next switch to this fiber calls entry, which must begin with arrive() and never return.
  void prepare(void (*entry)());
  // Suspends `from`, which is running, and goes on with `to`.
  static void switch_to(Fiber& from, Fiber& to);
  static void arrive();

 private:
#ifdef SIMT_USE_UCONTEXT
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
  char* mapping_ = nullptr;  // a guard page, then the stack
  size_t colour_ = 0;
  // For AddressSanitizer, which must know the stack that is in use.
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
};

}  // namespace simt
