// __nv_bfloat16, as a 16-bit pattern that converts to and from float with correct rounding.
#pragma once

#include <cstdint>

#include "simt/arithmetic.h"
#include "simt/types.h"

struct __nv_bfloat16_raw {
  uint16_t x;
};

namespace simt {

inline uint16_t to_bfloat16(float v) {  // nearest, ties to even
  if (std::isnan(v)) return 0x7fff;
  uint32_t bits = reinterpret<uint32_t>(v);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Rounds once: a double goes to float with its last bit made sticky, so that no tie appears on the way.
inline uint16_t to_bfloat16(double v) {
  float toward_zero = to_float<Round::kZero>(v);
  uint32_t sticky = reinterpret<uint32_t>(toward_zero) | (double(toward_zero) != v);
  return std::isnan(v) ? 0x7fff : to_bfloat16(reinterpret<float>(sticky));
}

}  // namespace simt

struct alignas(2) __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(__nv_bfloat16_raw raw) : bits(raw.x) {}
  __nv_bfloat16(float v) : bits(simt::to_bfloat16(v)) {}
  __nv_bfloat16(double v) : bits(simt::to_bfloat16(v)) {}
  __nv_bfloat16(int v) : bits(simt::to_bfloat16(double(v))) {}
  operator float() const { return simt::reinterpret<float>(uint32_t(bits) << 16); }
  operator __nv_bfloat16_raw() const { return {bits}; }
};
using nv_bfloat16 = __nv_bfloat16;

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using nv_bfloat162 = __nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float v) { return __nv_bfloat16(v); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __nv_bfloat16(v); }
inline __nv_bfloat16 __double2bfloat16(double v) { return __nv_bfloat16(v); }
inline float __bfloat162float(__nv_bfloat16 v) { return v; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return __nv_bfloat16(__nv_bfloat16_raw{bits}); }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {__nv_bfloat16(v.x), __nv_bfloat16(v.y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {float(v.x), float(v.y)}; }
inline float __low2float(__nv_bfloat162 v) { return v.x; }
inline float __high2float(__nv_bfloat162 v) { return v.y; }
