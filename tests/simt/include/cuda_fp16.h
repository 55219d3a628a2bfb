// __half, as a 16-bit pattern that converts to and from float with correct rounding.
#pragma once

#include <cstdint>

#include "simt/arithmetic.h"
#include "simt/types.h"

struct __half_raw {
  uint16_t x;
};

namespace simt {

// Nearest, ties to even, of any double; a float converts exactly on the way, so it is rounded once.
inline uint16_t to_half(double v) {
  uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  if (std::isnan(v)) return 0x7fff;
  double magnitude = std::fabs(v);
  if (magnitude >= 65520) return sign | 0x7c00;
  if (magnitude < 0x1p-14) return sign | uint16_t(std::nearbyint(std::ldexp(magnitude, 24)));  // subnormal or zero
  int exponent = std::ilogb(magnitude);
  auto significand = uint32_t(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));  // may carry into the exponent
  return uint16_t(sign | (uint32_t(exponent + 14) << 10) + significand);
}

inline float from_half(uint16_t bits) {
  int exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
  float magnitude = exponent == 0    ? std::ldexp(float(fraction), -24)
                    : exponent == 31 ? (fraction ? std::nanf("") : INFINITY)
                                     : std::ldexp(float(fraction | 0x400), exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

}  // namespace simt

struct alignas(2) __half {
  uint16_t bits;
  __half() = default;
  __half(__half_raw raw) : bits(raw.x) {}
  __half(float v) : bits(simt::to_half(v)) {}
  __half(double v) : bits(simt::to_half(v)) {}
  __half(int v) : bits(simt::to_half(v)) {}
  operator float() const { return simt::from_half(bits); }
  operator __half_raw() const { return {bits}; }
};
using half = __half;

struct alignas(4) __half2 {
  __half x, y;
};
using half2 = __half2;

inline __half __float2half(float v) { return __half(v); }
inline __half __float2half_rn(float v) { return __half(v); }
inline __half __double2half(double v) { return __half(v); }
inline float __half2float(__half v) { return v; }
inline unsigned short __half_as_ushort(__half v) { return v.bits; }
inline __half __ushort_as_half(unsigned short bits) { return __half(__half_raw{bits}); }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float22half2_rn(float2 v) { return {__half(v.x), __half(v.y)}; }
inline float2 __half22float2(__half2 v) { return {float(v.x), float(v.y)}; }
inline float __low2float(__half2 v) { return v.x; }
inline float __high2float(__half2 v) { return v.y; }
