// The thresholds of a panel's vectors, found or being tried, as the loops of sweeps.h want them.
#pragma once

#include "cpu/projection/panel.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// y of one entry, for the rare vector whose threshold or temperature the loops of sweeps.h cannot express.
static inline double project_entry(double x, double p, double d, double tau) {
  if (is_nan(p)) return p;
  if (p == HUGE_VAL) return x == HUGE_VAL ? d : 0.0;
  if (p == -HUGE_VAL) return x > -HUGE_VAL ? 1.0 : 0.0;
  return clip01(((x - p) - d) / tau);
}

// For temperatures above this, 1 / tau is a number of T, and so is d to 1e-14 tau, be it subnormal.
template <class T>
constexpr double kLeastTau = sizeof(T) == 4 ? 0x1p-102 : 16 / double(kLargest<T>);
static_assert(4 * kBlock <= 0x1p14, "kMostTau allows for as many entries in a block");

// Whether sweeps.h can express a vector: a finite threshold, or one of the simple special rows (hypersimplex.h).
template <class T>
static inline bool regular(double p, double d, double tau) {
  return !is_nan(p) && (p != HUGE_VAL || d == 0) && tau > kLeastTau<T> && tau < kMostTau<T>;
}

// Whether sweeps.h can express all of `count` vectors, which false leaves open.
template <class T>
static bool all_regular(const double* p, const PerVector& tau, int64_t first, int count) {
  bool all = true;
  for (int c = 0; c < (tau.values ? count : 1); ++c) all &= regular<T>(0, 0, at(tau, first + c));
  double finite = 0;
#pragma omp simd reduction(+ : finite)
  for (int c = 0; c < count; ++c) finite += p[c] - p[c];
  return all && finite == 0;
}

// The thresholds p + d and temperatures of a panel's vectors; columns that are padding have an infinite threshold.
struct alignas(64) LaneThresholds {
  double p[kMaxLanes], d[kMaxLanes], tau[kMaxLanes];

  void set(int column, Pair t) {
    p[column] = t.p;
    d[column] = t.d;
  }
};

// Copies the first `columns` lanes to all others.
template <class T>
static void repeat(T* lanes, int width, int columns) {
  if (columns == 1) {
    const T value = lanes[0];
    for (int l = 0; l < width; ++l) lanes[l] = value;
    return;
  }
  for (int first = columns; first < width; first += columns)
    for (int l = 0; l < columns; ++l) lanes[first + l] = lanes[l];
}

// What sweep_project reads of vectors that have been solved.
template <class T>
static void set_projection(Lanes<T>& lanes, const Panel& panel, const double* p, const double* d,
                           const PerVector& tau) {
  const int live = panel.live, columns = panel.plan.columns;
  const double rate = tau.values ? 0 : 1 / tau.value, *temperature = tau.values + (tau.values ? panel.vector(0) : 0);
#pragma omp simd
  for (int c = 0; c < live; ++c) {
    lanes.p[c] = T(p[c]);
    lanes.d[c] = is_finite(p[c]) ? T(d[c]) : T(0);
    lanes.rate[c] = T(rate);
  }
  for (int c = 0; tau.values && c < live; ++c) lanes.rate[c] = T(1 / temperature[c]);
  for (int c = live; c < columns; ++c) {
    lanes.p[c] = T(HUGE_VAL);
    lanes.d[c] = 0;
    lanes.rate[c] = 1;
  }
  for (T* row : {lanes.p, lanes.d, lanes.rate}) repeat(row, panel.plan.width, columns);
}

template <class L>
static inline void set_lane(L& lanes, int64_t c, double p, double d, double tau) {
  using T = decltype(lanes.p[0] + 0);
  const bool finite = is_finite(p);
  d = finite ? d : 0;
  const T floor = active_floor<T>({p, d}), ceiling = active_ceiling<T>({p, d}, tau);
  lanes.floor[c] = finite ? floor : T(HUGE_VAL);  // special rows have no active entry
  lanes.ceiling[c] = finite ? ceiling : T(HUGE_VAL);
  lanes.p[c] = T(p);
  lanes.d[c] = T(d);
  lanes.rate[c] = T(1 / tau);
}

template <class T>
static void set_lanes(Lanes<T>& lanes, const LaneThresholds& t, int width, int columns) {
#pragma omp simd
  for (int c = 0; c < columns; ++c) set_lane(lanes, c, t.p[c], t.d[c], t.tau[c]);
  for (T* row : {lanes.floor, lanes.ceiling, lanes.p, lanes.d, lanes.rate}) repeat(row, width, columns);
}

// The lanes of vectors that have been solved.
template <class T>
static void set_lanes(Lanes<T>& lanes, const Panel& panel, const State& state, const PerVector& tau) {
  LaneThresholds t;
  for (int c = 0; c < panel.plan.columns; ++c) {
    int64_t v = panel.vector(c);
    bool live = c < panel.live;
    t.set(c, live ? Pair{state.p[v], state.d[v]} : Pair{HUGE_VAL, 0});
    t.tau[c] = live ? at(tau, v) : 1;
  }
  set_lanes(lanes, t, panel.plan.width, panel.plan.columns);
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
