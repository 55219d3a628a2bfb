#include "cpu/simd/scratch.h"

namespace hypersimplex {
namespace cpu {
namespace {

struct AtThreadEnd {
  ~AtThreadEnd() {
    ::operator delete(scratch_stack.begin, ScratchStack::kLine);
    scratch_stack.begin = nullptr;
  }
};

}  // namespace

__thread ScratchStack scratch_stack = {nullptr, 0};

void ScratchStack::allocate() {
  begin = static_cast<char*>(::operator new(kBytes, kLine));
  thread_local const AtThreadEnd cleanup;
  static_cast<void>(cleanup);
}

}  // namespace cpu
}  // namespace hypersimplex
