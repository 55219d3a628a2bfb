// The thresholds of a panel's vectors, found or being tried, as the loops of lanes.h want them.
#pragma once

#include "panel.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// y of one entry, for the rare vector whose threshold or temperature the loops of lanes.h cannot express.
static inline double project_entry(double x, double p, double d, double tau) {
  if (p != p) return p;
  if (p == HUGE_VAL) return x == HUGE_VAL ? d : 0.0;
  if (p == -HUGE_VAL) return x > -HUGE_VAL ? 1.0 : 0.0;
  return clip01(((x - p) - d) / tau);
}

// Whether lanes.h can express a vector: a finite threshold, or one of the simple special rows (hypersimplex.h).
template <class T>
static inline bool regular(double p, double d, double tau) {
  constexpr double limit = double(kLargest<T>) / 16;
  return p == p && (p != HUGE_VAL || d == 0) && tau > 1 / limit && tau < limit;
}

// The thresholds p + d and temperatures of a panel's vectors; columns that are padding have an infinite threshold.
struct alignas(64) Thresholds {
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

template <class T>
static void set_lanes(Lanes<T>& lanes, const Thresholds& t, int width, int columns) {
#pragma omp simd
  for (int c = 0; c < columns; ++c) {
    double p = t.p[c], tau = t.tau[c];
    bool finite = p - p == 0;
    double d = finite ? t.d[c] : 0;
    T floor = active_floor<T>({p, d}), ceiling = active_ceiling<T>({p, d}, tau);
    lanes.floor[c] = finite ? floor : T(HUGE_VAL);  // special rows have no active entry
    lanes.ceiling[c] = finite ? ceiling : T(HUGE_VAL);
    lanes.p[c] = T(p);
    lanes.d[c] = T(d);
    lanes.rate[c] = T(1 / tau);
  }
  for (T* row : {lanes.floor, lanes.ceiling, lanes.p, lanes.d, lanes.rate}) repeat(row, width, columns);
}

// The lanes of vectors that have been solved.
template <class T>
static void set_lanes(Lanes<T>& lanes, const Panel& panel, const State& state, const PerVector& tau) {
  Thresholds t;
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
