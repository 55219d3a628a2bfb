#include "scratch.h"

namespace hypersimplex {
namespace cpu {
namespace {

constexpr std::align_val_t kLine{64};

size_t lines(size_t bytes) { return (bytes / 64 + 1) * 64; }  // never none, so that every place is its own

struct Memory {
  char* begin = nullptr;
  size_t used = 0;

  ~Memory() { ::operator delete(begin, kLine); }
};
thread_local Memory own;

}  // namespace

void* take_scratch(size_t bytes) {
  bytes = lines(bytes);
  if (bytes > kScratch - own.used) return ::operator new(bytes, kLine);  // seldom, and not kept
  if (!own.begin) own.begin = static_cast<char*>(::operator new(kScratch, kLine));
  void* memory = own.begin + own.used;
  own.used += bytes;
  return memory;
}

void return_scratch(void* memory, size_t bytes) noexcept {
  const uintptr_t place = reinterpret_cast<uintptr_t>(memory), begin = reinterpret_cast<uintptr_t>(own.begin);
  if (own.begin && place - begin < kScratch)
    own.used -= lines(bytes);
  else
    ::operator delete(memory, kLine);
}

}  // namespace cpu
}  // namespace hypersimplex
