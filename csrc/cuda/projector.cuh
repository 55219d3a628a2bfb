// y = clip((x - t) / tau, 0, 1) for the entries of one vector, special rows included (State in hypersimplex.h).
#pragma once

#include "../hypersimplex.h"
#include "warp.cuh"

namespace hypersimplex {
namespace cuda {

__device__ __forceinline__ double at(const PerVector& numbers, int64_t vector) {
  return numbers.values ? numbers.values[vector] : numbers.value;
}

template <class T>
struct Projector {
  T p, d, rate;      // y = clip(((x - p) - d) * rate, 0, 1), unless irregular
  T floor, ceiling;  // A = { floor < x < ceiling }
  T unit, origin;    // beyond(x) = x * unit - origin, one operation
  bool regular;
  double wide_d, tau, scale, wide_rate;  // 1 / tau = scale * wide_rate in double, also where 1 / tau overflows

  // What counting at t needs.
  __device__ void aim(Pair t, double temperature) {
    p = T(t.p);
    floor = active_floor<T>(t);
    ceiling = active_ceiling<T>(t, temperature);
    unit = T(unit_of<T>(temperature));
    origin = p * unit;
  }

  // x - p as counting sums it up, in the unit of the search.
  __device__ __forceinline__ T beyond(T x) const { return fma(x, unit, -origin); }

  __device__ void set(Pair t, double temperature) {
    tau = temperature;
    wide_d = t.d;
    bool finite = t.p - t.p == 0;
    if (finite) {
      aim(t, temperature);
    } else {
      p = T(t.p);
      floor = ceiling = kInfinity<T>;  // nothing is active
    }
    d = finite ? T(t.d) : T(0);
    scale = temperature < 1e-300 ? 0x1p600 : temperature > 1e300 ? 0x1p-600 : 1;
    wide_rate = 1 / (temperature * scale);
    double limit = double(kLargest<T>) / 16, most_rate = sizeof(T) == 4 ? 0x1p102 : limit;
    rate = T(wide_rate);
    regular = t.p == t.p && (t.p != kInfinity<double> || t.d == 0) && wide_rate < most_rate && temperature < limit &&
              wide_rate > 1 / limit && scale == 1;  // d, be it subnormal, is within 1e-14 tau
  }

  __device__ __forceinline__ bool active(T x) const { return x > floor && x < ceiling; }

  // (x - t) / tau where the vector is regular
  __device__ __forceinline__ T position(T x) const { return ((x - p) - d) * rate; }

  __device__ __forceinline__ T y(T x) const { return clip01(position(x)); }

  // For what T cannot express: v / tau without a division, and y.
  __device__ __forceinline__ double by_tau(double v) const { return v * scale * wide_rate; }
  __device__ __forceinline__ double irregular_y(T x) const {
    if (p != p) return p;
    if (p == kInfinity<T>) return x == kInfinity<T> ? wide_d : 0.0;
    if (p == -kInfinity<T>) return x > -kInfinity<T> ? 1.0 : 0.0;
    return clip01(by_tau((double(x) - double(p)) - wide_d));
  }
};

// Counts entries above t, those at or above t + tau, and sums up the active ones: both numbers in one integer, as few
// as tuning::kFlush entries are counted between two calls of flush().
template <class T>
struct Counter {
  T floor, ceiling, unit, origin;
  unsigned counts;  // #{x > t} in the lower half, of these the active ones in the upper
  T sum;            // of x - p

  __device__ __forceinline__ void aim(const Projector<T>& at) {
    floor = at.floor;
    ceiling = at.ceiling;
    unit = at.unit;
    origin = at.origin;
    counts = 0;
    sum = 0;
  }
  __device__ __forceinline__ void add(T x) { add_to(sum, x); }
  // Counts alone.
  __device__ __forceinline__ bool count(T x) {
    const bool above = x > floor, active = above && x < ceiling;
    counts += above ? active ? 0x10001u : 1u : 0u;
    return active;
  }
  // #{x > t} and #{x >= t + tau} of what was counted.
  __device__ static unsigned above(unsigned counts) { return counts & 0xffff; }
  __device__ static unsigned ones(unsigned counts) { return above(counts) - (counts >> 16); }
  template <int N>
  __device__ __forceinline__ void add_all(const T (&x)[N]) {
    T parts = 0;
#pragma unroll
    for (T v : x) add_to(parts, v);
    sum += parts;
  }
  template <class Sums>
  __device__ __forceinline__ void flush(Sums& sums) {
    flush_counts(sums);
    sums.sum[0] += double(sum);
    sum = 0;
  }
  template <class Sums>
  __device__ __forceinline__ void flush_counts(Sums& sums) {
    sums.count[0] += above(counts);
    sums.count[1] += ones(counts);
    counts = 0;
  }

 private:
  __device__ __forceinline__ void add_to(T& total, T x) {
    const bool active = count(x);
    const T more = total + fma(x, unit, -origin);
    total = active ? more : total;
  }
};

}  // namespace cuda
}  // namespace hypersimplex
