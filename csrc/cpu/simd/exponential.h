// exp in double as arithmetic alone, so that loops that call it vectorise. Within 2 ulp of the exact value.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/simd/isa.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// 2^k for an integer -1022 <= k <= 1023 given as 1.5 * 2^52 + k, whose lowest bits are k's.
inline double power_of_two(double shifted) {
  uint64_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 1023) << 52;
  double power;
  memcpy(&power, &bits, sizeof power);
  return power;
}

// exp(v) = 2^k exp(r), |r| <= log(2) / 2. 2^k is applied in two steps: it may be subnormal or overflow where one of
// them would not.
__attribute__((always_inline)) inline double exponential(double v) {
  constexpr double kShift = 0x1.8p52;
  v = v < -800 ? -800 : v;
  v = v > 800 ? 800 : v;
  const double k = v * 1.4426950408889634 + kShift - kShift;
  const double r = (v - k * 0x1.62e42fee00000p-1) - k * 0x1.a39ef35793c76p-33;
  const double r2 = r * r, r4 = r2 * r2;
  const double low = (1 + r) + r2 * (1.0 / 2 + r * (1.0 / 6));
  const double middle = (1.0 / 24 + r * (1.0 / 120)) + r2 * (1.0 / 720 + r * (1.0 / 5040));
  const double high = (1.0 / 40320 + r * (1.0 / 362880)) + r2 * (1.0 / 3628800 + r * (1.0 / 39916800));
  const double top = 1.0 / 479001600 + r * (1.0 / 6227020800);
  const double half = k * 0.5 + kShift;
  return (low + r4 * (middle + r4 * (high + r4 * top))) * power_of_two(half) *
         power_of_two(kShift + (k - (half - kShift)));
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
