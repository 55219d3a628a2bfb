// The root search of newton.h for kGroup short vectors at once, a lane each: their sweeps are so short that a step
// taken vector by vector would cost more than the sweep before it. Every lane goes its own way and stops by itself.
// What takes more than a few steps (infinities, huge spreads) is left to the general solver.
#pragma once

#include "lanes.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

template <class T>
class ShortSearch {
 public:
  // x is [n, kGroup], rows `stride` apart, mass and tau by lane, z as in moment_guess. Sets p, d and solved of the
  // lanes that settle.
  void solve(const T* x, int64_t stride, int64_t n, const double* mass, const double* tau, const double* z, double* p,
             double* d, bool* solved) {
    start(x, stride, n, mass, tau, z);
    for (int evaluations = 0; evaluations < kPatience && any_searching(); ++evaluations) {
      for (int i = 0; i < kCount; ++i) evaluate(x + i * kVectorLanes<T>, stride, n, i);
    }
    leave(x, stride, n, tau, p, d, solved);
  }

 private:
  using V = Vector<T>;
  using I = Counts<T>;  // also what a comparison gives: all bits of a lane set, or none
  static constexpr int kCount = kVectors<T>, kPatience = 14;
  static constexpr Count<T> kLeft = -1, kSearching = 0, kFound = 1, kGapBelow = 2, kGapAbove = 3;  // a lane's status

  struct Pair {
    V p, d;
  };
  static inline Pair two_sum(V a, V b) {
    const V s = a + b, shifted = s - a;
    return {s, (a - (s - shifted)) + (b - shifted)};
  }
  static inline V difference(Pair u, Pair v) { return (u.p - v.p) + (u.d - v.d); }
  static inline Pair either(I m, Pair u, Pair v) { return {m ? u.p : v.p, m ? u.d : v.d}; }
  static inline I ordered(V v) {
    const I bits = I(v);
    return bits < 0 ? -(bits & kMagnitude) : bits;
  }
  static inline V from(I number) { return V(number < 0 ? (-number | ~kMagnitude) : number); }
  static constexpr Count<T> kMagnitude = Count<T>(~(Count<T>(1) << (8 * sizeof(T) - 1)));

  void start(const T* x, int64_t stride, int64_t n, const double* mass, const double* tau, const double* z) {
    alignas(64) T shift[kGroup], first[kGroup], whole[kGroup], rest[kGroup], temperature[kGroup];
    alignas(64) Count<T> settled[kGroup];
    LaneMoments<T> moments;
    moments.clear(kGroup);
    memcpy(shift, x, sizeof shift);
    sweep_moments<false>(x, n, stride, kGroup, shift, moments);
    const double* sum = moments.sums.b;
    const T *low = moments.range.low, *high = moments.range.high;
#pragma omp simd
    for (int l = 0; l < kGroup; ++l) {
      const double mean = sum[l] / double(n), variance = moments.sums.c[l] / double(n) - mean * mean;
      const double share = tau[l] * mass[l] / double(n), least = low[l] - share, most = high[l] - share;
      double t = moment_guess(double(shift[l]) + mean, variance > 0 ? variance : 0, tau[l], z[l]);
      t = t > least ? t : least;  // also where the moments overflowed
      t = t < most ? t : most;
      first[l] = T(t);
      whole[l] = T(int(mass[l]));
      rest[l] = T(mass[l] - int(mass[l]));
      temperature[l] = T(tau[l]);
      const bool finite = sum[l] - sum[l] == 0;
      settled[l] = finite & (mass[l] > 0) & (mass[l] < double(n)) ? kSearching : kLeft;
    }
    V guess[kCount];
    load_group(first, guess);
    load_group(whole, whole_);
    load_group(rest, fraction_);
    load_group(temperature, tau_);
    V bottom[kCount], top[kCount];
    load_group(low, bottom);
    load_group(high, top);
    memcpy(status_, settled, sizeof status_);
    for (int i = 0; i < kCount; ++i) {
      t_[i] = {guess[i], V{}};
      lo_[i] = {bottom[i], -tau_[i]};
      hi_[i] = {top[i], V{}};
      f_lo_[i] = ((T(n) - whole_[i]) - fraction_[i]) * tau_[i];
      f_hi_[i] = (-whole_[i] - fraction_[i]) * tau_[i];
      last_g_[i] = last_h_[i] = I{} - 1;
      bad_[i] = steps_[i] = I{};
    }
  }

  bool any_searching() const {
    I any{};
    for (int i = 0; i < kCount; ++i) any |= status_[i] == kSearching;
    Count<T> lanes[kVectorLanes<T>], found = 0;
    memcpy(lanes, &any, sizeof any);
    for (int l = 0; l < kVectorLanes<T>; ++l) found |= lanes[l];
    return found != 0;
  }

  // A sweep at t, and what step() of newton.h makes of it.
  void evaluate(const T* x, int64_t stride, int64_t n, int i) {
    const V tau = tau_[i];
    const Pair t = t_[i], end = two_sum(t.p, t.d + tau);
    const V floor = from(ordered(t.p) + (t.d < 0)), ceiling = from(ordered(end.p) - (end.d > 0));
    V sum{}, part{};
    I g{}, active{};
    for (int64_t j = 0; j < n;) {
      for (const int64_t stop = run_end(j, n); j < stop; ++j) {
        const V v = load_vector(x + j * stride);
        const auto is_above = greater(v, floor), is_active = both_greater(is_above, ceiling, v);
        g = counted(is_above, g);
        active = counted(is_active, active);
        part = added(is_active, part, v - t.p);
      }
      sum += part;
      part = V{};
    }
    const I h = g - active, searching = status_[i] == kSearching, sloping = active > 0;
    const V slope = __builtin_convertvector(active, V);
    const V ones = (__builtin_convertvector(h, V) - whole_[i]) - fraction_[i];  // h - k
    const V others = (__builtin_convertvector(g, V) - whole_[i]) - fraction_[i];
    const V rest = ones * tau + sum, f = rest - slope * t.d;
    const Pair newton = two_sum(t.p, rest / (sloping ? slope : V{} + 1));
    const V width = difference(hi_[i], lo_[i]);
    const I rises = f > 0;
    const Pair lo = either(rises, t, lo_[i]), hi = either(rises, hi_[i], t);
    const V f_lo = rises ? f : f_lo_[i], f_hi = rises ? f_hi_[i] : f;
    const V narrowed = difference(hi, lo);
    const I same = (g == last_g_[i]) & (h == last_h_[i]), done = same | (f == 0);
    const I bad = narrowed > T(0.5) * width ? bad_[i] + 1 : I{}, wide = narrowed > 64 * tau;
    const I patient = (steps_[i] < 8) | ~wide;

    const V fraction = f_lo / (f_lo - f_hi);
    Pair secant = two_sum(lo.p, lo.d + narrowed * fraction), middle = two_sum(lo.p, lo.d + T(0.5) * narrowed);
    const I below = ordered(lo.p), above = ordered(hi.p);
    secant.d = wide ? V{} : secant.d;
    middle = either(wide, {from((below >> 1) + (above >> 1) + (below & above & 1)), V{}}, middle);
    auto inside = [&](Pair u) { return (difference(u, lo) > 0) & (difference(hi, u) > 0); };
    const I by_newton = sloping & (bad < 6) & patient & inside(newton);
    const I by_secant = (bad < 2) & patient & inside(secant);
    const Pair next = either(by_newton, newton, either(by_secant, secant, middle));
    const I status = done ? (ones == 0 ? I{} + kGapBelow : others == 0 ? I{} + kGapAbove : I{} + kFound) : I{};
    const Pair root = either(same & (status == kFound), newton, t);

    t_[i] = either(searching, either(done, root, next), t);
    status_[i] = searching ? status : status_[i];
    lo_[i] = lo;  // of a lane that is done these no longer matter
    hi_[i] = hi;
    f_lo_[i] = f_lo;
    f_hi_[i] = f_hi;
    last_g_[i] = by_newton ? g : I{} - 1;
    last_h_[i] = by_newton ? h : I{} - 1;
    bad_[i] = bad;
    steps_[i] += 1;
  }

  void leave(const T* x, int64_t stride, int64_t n, const double* tau, double* p, double* d, bool* solved) {
    alignas(64) T head[kGroup], tail[kGroup], edge[kGroup];
    alignas(64) Count<T> status[kGroup];
    memcpy(status, status_, sizeof status);
    Count<T> gaps = 0;
    for (int i = 0; i < kCount; ++i) {
      const Pair t = t_[i], end = two_sum(t.p, t.d + tau_[i]);
      const V floor = from(ordered(t.p) + (t.d < 0)), under_one = from(ordered(end.p) - (end.d > 0) - 1);
      store_vector<T>(t.p, head + i * kVectorLanes<T>);
      store_vector<T>(t.d, tail + i * kVectorLanes<T>);
      store_vector<T>(status_[i] == kGapBelow ? under_one : floor, edge + i * kVectorLanes<T>);
    }
    for (int l = 0; l < kGroup; ++l) {
      gaps |= status[l] > kFound;
      solved[l] = status[l] > kSearching;
      p[l] = double(head[l]);
      d[l] = double(tail[l]);
    }
    if (!gaps) return;
    LaneRange<T> range;  // no entry is active: t goes to the middle of the thresholds that all give this y
    range.clear(kGroup);
    sweep_gap(x, n, stride, kGroup, edge, range);
    for (int l = 0; l < kGroup; ++l) {
      if (status[l] <= kFound) continue;
      const hypersimplex::Pair t = gap_middle<T>(range.high[l], range.low[l], tau[l]);
      p[l] = t.p;
      d[l] = t.d;
    }
  }

  V whole_[kCount], fraction_[kCount];  // of the mass
  V tau_[kCount], f_lo_[kCount], f_hi_[kCount];
  Pair t_[kCount], lo_[kCount], hi_[kCount];
  I last_g_[kCount], last_h_[kCount], bad_[kCount], steps_[kCount], status_[kCount];
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
