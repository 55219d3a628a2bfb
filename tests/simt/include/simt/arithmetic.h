// Arithmetic that CUDA has and the C library has not: bit counts, reinterpretation, directed rounding, conversions.
#pragma once

#include <math.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

// ---- min and max of mixed types; of a number and a NaN, the number ----

template <class A, class B>
constexpr typename std::common_type<A, B>::type min(A a, B b) {
  using T = typename std::common_type<A, B>::type;
  T u = T(a), v = T(b);
  return u != u || v < u ? v : u;
}
template <class A, class B>
constexpr typename std::common_type<A, B>::type max(A a, B b) {
  using T = typename std::common_type<A, B>::type;
  T u = T(a), v = T(b);
  return u != u || u < v ? v : u;
}

// ---- bits ----

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(unsigned(v)); }
inline int __clzll(long long v) { return v == 0 ? 64 : __builtin_clzll((unsigned long long)(v)); }
inline unsigned __brev(unsigned v) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (v >> i & 1) << (31 - i);
  return reversed;
}
inline unsigned long long __brevll(unsigned long long v) {
  return (unsigned long long)(__brev(unsigned(v))) << 32 | __brev(unsigned(v >> 32));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((uint64_t(high) << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  uint64_t bytes = uint64_t(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    unsigned pick = selector >> (4 * i) & 0xf, byte = unsigned(bytes >> (8 * (pick & 7)) & 0xff);
    if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}
inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }

// ---- reinterpretation ----

namespace simt {
template <class To, class From>
To reinterpret(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace simt

inline int __float_as_int(float v) { return simt::reinterpret<int>(v); }
inline unsigned __float_as_uint(float v) { return simt::reinterpret<unsigned>(v); }
inline float __int_as_float(int v) { return simt::reinterpret<float>(v); }
inline float __uint_as_float(unsigned v) { return simt::reinterpret<float>(v); }
inline long long __double_as_longlong(double v) { return simt::reinterpret<long long>(v); }
inline double __longlong_as_double(long long v) { return simt::reinterpret<double>(v); }
inline int __double2hiint(double v) { return int(__double_as_longlong(v) >> 32); }
inline int __double2loint(double v) { return int(__double_as_longlong(v)); }
inline double __hiloint2double(int high, int low) {
  return __longlong_as_double((long long)(uint64_t(uint32_t(high)) << 32 | uint32_t(low)));
}

// ---- directed rounding: round to nearest, then correct by the sign of the exact error ----

namespace simt {

enum class Round { kNearest, kDown, kUp, kZero };

// `nearest` is a result rounded to nearest and `error` has the sign of (exact - nearest).
template <Round round, class T, class E>
T directed(T nearest, E error) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  Round to = round == Round::kZero ? (nearest > 0 ? Round::kDown : Round::kUp) : round;
  if (to == Round::kDown && (error < 0)) return std::nextafter(nearest, -kInfinity);
  if (to == Round::kUp && (error > 0)) return std::nextafter(nearest, kInfinity);
  return nearest;
}

// Rounding to nearest may overflow to infinity where the exact value is finite.
template <class T>
bool finite_to_infinite(T result, bool operands_finite) {
  return operands_finite && std::isinf(result);
}

template <Round round, class T>
T add(T a, T b) {
  T sum = a + b;
  if (finite_to_infinite(sum, std::isfinite(a) && std::isfinite(b)))
    return directed<round>(sum, sum > 0 ? T(-1) : T(1));
  T shifted = sum - a;
  return directed<round>(sum, (a - (sum - shifted)) + (b - shifted));
}

template <Round round, class T>
T multiply(T a, T b) {
  T product = a * b;
  if (finite_to_infinite(product, std::isfinite(a) && std::isfinite(b)))
    return directed<round>(product, product > 0 ? T(-1) : T(1));
  return directed<round>(product, std::fma(a, b, -product));
}

template <Round round, class T>
T divide(T a, T b) {
  T quotient = a / b;
  if (b == 0 || !std::isfinite(a) || !std::isfinite(b)) return quotient;
  if (std::isinf(quotient)) return directed<round>(quotient, quotient > 0 ? T(-1) : T(1));
  T rest = std::fma(-quotient, b, a);
  return directed<round>(quotient, b > 0 ? rest : -rest);
}

template <Round round>
float to_float(double v) {
  float nearest = float(v);
  return std::isnan(v) ? nearest : directed<round>(nearest, v > double(nearest) ? 1 : v < double(nearest) ? -1 : 0);
}

template <Round round, class Int, class F>
Int to_integer(F v) {
  if (std::isnan(v)) return 0;  // conversions to integers saturate, NaN gives 0
  F whole = round == Round::kNearest ? std::nearbyint(v)
            : round == Round::kDown  ? std::floor(v)
            : round == Round::kUp    ? std::ceil(v)
                                     : std::trunc(v);
  if (whole < F(std::numeric_limits<Int>::min())) return std::numeric_limits<Int>::min();
  if (whole >= std::ldexp(F(1), std::numeric_limits<Int>::digits)) return std::numeric_limits<Int>::max();
  return Int(whole);
}

template <Round round, class Int>
float integer_to_float(Int v) {
  // 64-bit integers are exact in long double on x86 and in its quad or double-double elsewhere.
  float nearest = float(v);
  long double error = static_cast<long double>(v) - nearest;
  return directed<round>(nearest, error);
}

}  // namespace simt

#define SIMT_ROUNDED(suffix, mode)                                                                              \
  inline float __fadd_##suffix(float a, float b) { return simt::add<simt::Round::mode>(a, b); }                 \
  inline float __fsub_##suffix(float a, float b) { return simt::add<simt::Round::mode>(a, -b); }                \
  inline float __fmul_##suffix(float a, float b) { return simt::multiply<simt::Round::mode>(a, b); }            \
  inline float __fdiv_##suffix(float a, float b) { return simt::divide<simt::Round::mode>(a, b); }              \
  inline float __frcp_##suffix(float a) { return simt::divide<simt::Round::mode>(1.0f, a); }                    \
  inline double __dadd_##suffix(double a, double b) { return simt::add<simt::Round::mode>(a, b); }              \
  inline double __dsub_##suffix(double a, double b) { return simt::add<simt::Round::mode>(a, -b); }             \
  inline double __dmul_##suffix(double a, double b) { return simt::multiply<simt::Round::mode>(a, b); }         \
  inline double __ddiv_##suffix(double a, double b) { return simt::divide<simt::Round::mode>(a, b); }           \
  inline double __drcp_##suffix(double a) { return simt::divide<simt::Round::mode>(1.0, a); }                   \
  inline float __double2float_##suffix(double v) { return simt::to_float<simt::Round::mode>(v); }               \
  inline int __float2int_##suffix(float v) { return simt::to_integer<simt::Round::mode, int>(v); }              \
  inline int __double2int_##suffix(double v) { return simt::to_integer<simt::Round::mode, int>(v); }            \
  inline unsigned __float2uint_##suffix(float v) { return simt::to_integer<simt::Round::mode, unsigned>(v); }   \
  inline unsigned __double2uint_##suffix(double v) { return simt::to_integer<simt::Round::mode, unsigned>(v); } \
  inline long long __float2ll_##suffix(float v) { return simt::to_integer<simt::Round::mode, long long>(v); }   \
  inline long long __double2ll_##suffix(double v) { return simt::to_integer<simt::Round::mode, long long>(v); } \
  inline float __int2float_##suffix(int v) { return simt::integer_to_float<simt::Round::mode>(v); }             \
  inline float __uint2float_##suffix(unsigned v) { return simt::integer_to_float<simt::Round::mode>(v); }       \
  inline float __ll2float_##suffix(long long v) { return simt::integer_to_float<simt::Round::mode>(v); }
SIMT_ROUNDED(rn, kNearest)
SIMT_ROUNDED(rd, kDown)
SIMT_ROUNDED(ru, kUp)
SIMT_ROUNDED(rz, kZero)
#undef SIMT_ROUNDED

inline double __int2double_rn(int v) { return v; }
inline double __uint2double_rn(unsigned v) { return v; }
inline double __ll2double_rn(long long v) { return double(v); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float v) { return std::sqrt(v); }
inline double __dsqrt_rn(double v) { return std::sqrt(v); }

// ---- fast and extra functions; here exact where CUDA's are approximate ----

inline float __saturatef(float v) { return v > 0 ? (v < 1 ? v : 1) : 0; }  // NaN gives 0
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float v) { return std::exp(v); }
inline float __exp10f(float v) { return std::pow(10.0f, v); }
inline float __logf(float v) { return std::log(v); }
inline float __log2f(float v) { return std::log2(v); }
inline float __log10f(float v) { return std::log10(v); }
inline float __powf(float base, float exponent) { return std::pow(base, exponent); }
inline float rsqrtf(float v) { return float(1 / std::sqrt(double(v))); }
inline double rsqrt(double v) { return 1 / std::sqrt(v); }
inline float __frsqrt_rn(float v) { return rsqrtf(v); }
inline double normcdf(double v) { return 0.5 * std::erfc(-v * 0.70710678118654752440); }
inline float normcdff(float v) { return float(normcdf(v)); }
