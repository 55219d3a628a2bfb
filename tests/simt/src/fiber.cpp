// A switch saves what a function call must preserve and exchanges the stack pointer. ucontext, which also saves the
// signal mask with a system call, serves other platforms; a block reduction takes six times as long with it.
#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#endif
#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef SIMT_USE_UCONTEXT
extern "C" void simt_switch(void** save, void* next);

#ifdef __x86_64__
asm(R"(
  .text
  .hidden simt_switch
  .globl simt_switch
  .type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size simt_switch, .-simt_switch
)");
constexpr int kSavedWords = 8;  // six registers, the return address, one for alignment
constexpr int kEntryWord = 6;
#else
asm(R"(
  .text
  .hidden simt_switch
  .globl simt_switch
  .type simt_switch, %function
simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size simt_switch, .-simt_switch
)");
constexpr int kSavedWords = 20;
constexpr int kEntryWord = 11;  // x30
#endif
#endif

namespace simt {
namespace {

#ifdef SIMT_ASAN
constexpr size_t kStackBytes = 256 << 10;  // frames grow by their red zones
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
// Stacks whose tops are a power of two apart share few cache sets: spread them.
constexpr size_t kColours = 64, kColourBytes = 192;

Fiber* leaving = nullptr;

}  // namespace

Fiber::Fiber(size_t stack_index) : colour_((stack_index % kColours) * kColourBytes) {
  size_t page = size_t(sysconf(_SC_PAGESIZE));
  void* memory =
      mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<char*>(memory);
  mprotect(mapping_, page, PROT_NONE);
  bottom_ = mapping_ + page;
  size_ = kStackBytes;
}

Fiber::~Fiber() {
  if (mapping_) munmap(mapping_, size_t(static_cast<const char*>(bottom_) - mapping_) + size_);
}

void Fiber::prepare(void (*entry)()) {
  char* top = mapping_ + (static_cast<const char*>(bottom_) - mapping_) + size_ - colour_;
#ifdef SIMT_ASAN
  ASAN_UNPOISON_MEMORY_REGION(bottom_, size_);  // an abandoned run may have left its frames
#endif
#ifdef SIMT_USE_UCONTEXT
  getcontext(&context_);
  context_.uc_stack.ss_sp = const_cast<void*>(bottom_);
  context_.uc_stack.ss_size = size_t(top - static_cast<const char*>(bottom_));
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#else
  auto* words = reinterpret_cast<void**>(top) - kSavedWords;
  for (int i = 0; i < kSavedWords; ++i) words[i] = nullptr;
  words[kEntryWord] = reinterpret_cast<void*>(entry);
  stack_pointer_ = words;
#endif
  fake_stack_ = nullptr;
}

void Fiber::switch_to(Fiber& from, Fiber& to) {
  leaving = &from;
#ifdef SIMT_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_, to.size_);
#endif
#ifdef SIMT_USE_UCONTEXT
  swapcontext(&from.context_, &to.context_);
#else
  simt_switch(&from.stack_pointer_, to.stack_pointer_);
#endif
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack_, &leaving->bottom_, &leaving->size_);
#endif
}

void Fiber::arrive() {
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &leaving->bottom_, &leaving->size_);
#endif
}

}  // namespace simt
