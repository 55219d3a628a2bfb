// One floating-point environment for every thread that computes: subnormal numbers are kept and results rounded to
// nearest, whatever the caller's thread has been set to. torch.set_flush_denormal sets the thread that calls it alone,
// so without this a result would depend on which thread computed it.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace hypersimplex {
namespace cpu {

class FloatEnvironment {
 public:
  FloatEnvironment() : before_(current()) {
    if (differs()) set(kStandard);
  }
  FloatEnvironment(const FloatEnvironment&) = delete;
  ~FloatEnvironment() {
    if (differs()) set(before_);
  }

 private:
#if defined(__SSE2__)  // MXCSR; its lowest bits tell what has happened
  using Control = unsigned;
  static constexpr Control kStandard = 0x1f80, kSettings = 0xffc0;
  static Control current() { return _mm_getcsr(); }
  static void set(Control control) { _mm_setcsr(control); }
#elif defined(__aarch64__)  // FPCR
  using Control = uint64_t;
  static constexpr Control kStandard = 0, kSettings = ~Control(0);
  static Control current() {
    Control control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    return control;
  }
  static void set(Control control) { __asm__ volatile("msr fpcr, %0" : : "r"(control)); }
#else
  using Control = int;
  static constexpr Control kStandard = 0, kSettings = 0;
  static Control current() { return kStandard; }
  static void set(Control) {}
#endif
  bool differs() const { return ((before_ ^ kStandard) & kSettings) != 0; }

  const Control before_;
};

}  // namespace cpu
}  // namespace hypersimplex
