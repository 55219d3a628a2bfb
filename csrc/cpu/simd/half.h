// Storage types and the type each is computed in: halves are converted to float32 on the way in and rounded to nearest
// even on the way out. Branch-free integer arithmetic, so the loops that call it vectorise on every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/simd/isa.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class In>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class In>
using Compute = typename ComputeOf<In>::type;

static inline uint32_t bits_of(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof v);
  return bits;
}
static inline float float_of(uint32_t bits) {
  float v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

static inline float load(float v) { return v; }
static inline double load(double v) { return v; }
static inline float load(BFloat16 v) { return float_of(uint32_t(v.bits) << 16); }
static inline float load(Float16 v) {
  uint32_t sign = uint32_t(v.bits & 0x8000u) << 16, magnitude = v.bits & 0x7fffu;
  float finite = float_of(magnitude << 13) * 0x1p112f;  // moves the exponent's bias; exact, subnormals too
  uint32_t special = 0x7f800000u | (magnitude << 13);   // exponent all ones: inf or nan
  return float_of(sign | (magnitude >= 0x7c00u ? special : bits_of(finite)));
}

static inline void store(float v, float& out) { out = v; }
static inline void store(double v, double& out) { out = v; }
static inline void store(float v, BFloat16& out) {
  uint32_t bits = bits_of(v);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
static inline void store(float v, Float16& out) {
  uint32_t bits = bits_of(v), sign = bits & 0x80000000u, magnitude = bits ^ sign;
  uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;  // the adder rounds at 2^-24
  uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  out.bits = uint16_t((sign >> 16) | (magnitude >= 0x477ff000u ? special : finite));
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
