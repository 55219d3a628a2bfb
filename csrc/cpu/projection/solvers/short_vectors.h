// The root search of newton.h for groups of kGroup short vectors at once, a lane each: their sweeps are so short that a
// step taken vector by vector would cost more than the sweep before it. Every lane goes its own way and stops by
// itself. A step is one long chain of operations that wait for one another: groups taken in turns fill its gaps.
// What takes more than a few steps (infinities, huge spreads) is left to the general solver.
#pragma once

#include "cpu/projection/lane_thresholds.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

template <class T, int kGroups>
class ShortSearch {
 public:
  static constexpr int kLanes = kGroups * kGroup;

  // x is [n, kLanes], rows `stride` apart, mass and tau by lane, z as in moment_guess. Sets p, d and solved of the
  // lanes that settle.
  void solve(const T* x, int64_t stride, int64_t n, const double* mass, const double* tau, const double* z, double* p,
             double* d, bool* solved) {
    start(x, stride, n, mass, tau, z);
    search(x, stride, n);
    leave(x, stride, n, tau, p, d, solved);
  }

  // Goes on among other entries, from the threshold found last: f > 0 at `floor`, and no entry is above `top`. Entries
  // at the floor or below change nothing. Lanes that are not `wanted` are left.
  void resume(const T* x, int64_t stride, int64_t n, const T* floor, const T* top, const Count<T>* wanted,
              const double* tau, double* p, double* d, bool* solved) {
    for (int i = 0; i < kCount; ++i) {
      const int first = i * kVectorLanes<T>;
      bracket(i, {load_vector(floor + first), V{}}, load_vector(top + first));
      const M within = greater(difference(t_[i], lo_[i]), V{}) & greater(difference(hi_[i], t_[i]), V{});
      status_[i] = select(M(within & greater(load_vector(wanted + first), I{})), I{} + kSearching, I{} + kLeft);
    }
    search(x, stride, n);
    leave(x, stride, n, tau, p, d, solved);
  }

  // Whether no entry is active at the lane's threshold.
  bool in_gap(int lane) const { return status_[lane / kVectorLanes<T>][lane % kVectorLanes<T>] > kFound; }

 private:
  using V = Vector<T>;
  using I = Counts<T>;
  using M = Mask<T>;
  using Rules = Search<T>;
  static constexpr int kCount = kGroups * kVectors<T>, kApproach = 3;
  static constexpr int64_t kFew = 16;  // entries whose sweep costs less than what follows it
  static constexpr Count<T> kLeft = -1, kSearching = 0, kFound = 1, kGapBelow = 2, kGapAbove = 3;  // a lane's status

  struct Pair {
    V p, d;
  };
  static inline Pair two_sum(V a, V b) {
    const V s = a + b, shifted = s - a;
    return {s, (a - (s - shifted)) + (b - shifted)};
  }
  static inline V difference(Pair u, Pair v) { return (u.p - v.p) + (u.d - v.d); }
  static inline Pair select_pair(M m, Pair u, Pair v) { return {select(m, u.p, v.p), select(m, u.d, v.d)}; }
  static inline I ordered(V v) {
    const I bits = I(v);
    return select(greater(I{}, bits), -(bits & kMagnitude), bits);
  }
  static inline V from(I number) { return V(select(greater(I{}, number), -number | ~kMagnitude, number)); }
  static constexpr Count<T> kMagnitude = Count<T>(~(Count<T>(1) << (8 * sizeof(T) - 1)));
  static inline V root(V v) {
    T lanes[kVectorLanes<T>];
    memcpy(lanes, &v, sizeof v);
#pragma omp simd
    for (int l = 0; l < kVectorLanes<T>; ++l) lanes[l] = sqrt(lanes[l]);
    return load_vector(lanes);
  }
  // The least number at or above t + tau.
  static inline V ceiling_of(Pair t, V tau) {
    const Pair end = two_sum(t.p, t.d + tau);
    return from(add_one_where(greater(end.d, V{}), ordered(end.p)));
  }

  void start(const T* x, int64_t stride, int64_t n, const double* mass, const double* tau, const double* z) {
    alignas(64) T whole[kLanes], rest[kLanes], temperature[kLanes], quantile[kLanes];
    alignas(64) Count<T> inner[kLanes];
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      whole[l] = T(int(mass[l]));
      rest[l] = T(mass[l] - int(mass[l]));
      temperature[l] = T(tau[l]);
      quantile[l] = T(z[l]);
      inner[l] = (whole[l] + rest[l] > 0) & ((T(n) - whole[l]) - rest[l] > 0);  // also as rounded to T
    }
    const V count = V{} + T(n), share = V{} + 1 / T(n);
    for (int i = 0; i < kCount; ++i) {
      const int first = i * kVectorLanes<T>;
      const T* row = x + first;
      const V origin = load_vector(row);
      V sum{}, squares{}, low = origin, high = origin;
      for (int64_t j = 0; j < n; ++j, row += stride) {
        const V v = load_vector(row), e = v - origin;
        sum += e;
        squares += e * e;
        low = min(low, v);
        high = max(high, v);
      }
      whole_[i] = load_vector(whole + first);
      fraction_[i] = load_vector(rest + first);
      const V t = load_vector(temperature + first), u = load_vector(quantile + first);
      // moment_guess, and the bounds of Search::start; the former is not a number where the moments overflow.
      const V mean = sum * share, spread = squares * share - mean * mean, uniform = t * t * T(1.0 / 12);
      const V variance = max(spread, V{}) + uniform, flatness = uniform / variance;
      const V bend = (u * u * u - 3 * u) * (flatness * flatness * T(-1.2 / 24));
      const V guess = ((origin + mean) - T(0.5) * t) + root(variance) * (u + bend);
      const V step = t * ((whole_[i] + fraction_[i]) * share);
      tau_[i] = t;
      t_[i] = {min(max(guess, low - step), high - step), V{}};
      f_lo_[i] = ((count - whole_[i]) - fraction_[i]) * t;
      bracket(i, {low, -t}, high);
      const M finite = equal(sum - sum, V{}), within = greater(load_vector(inner + first), I{});
      status_[i] = select(M(finite & within), I{} + kSearching, I{} + kLeft);
    }
    if (n <= kFew) approach(x, stride, n);
  }

  // First steps in plain T, all lanes abreast: they cost half of what they do with the search's care.
  void approach(const T* x, int64_t stride, int64_t n) {
    V lo[kCount], hi[kCount], f_lo[kCount], f_hi[kCount];
    for (int i = 0; i < kCount; ++i) {
      lo[i] = lo_[i].p + lo_[i].d;
      hi[i] = hi_[i].p;
      f_lo[i] = f_lo_[i];
      f_hi[i] = f_hi_[i];
    }
    // The root stays between lo and hi, of which each turn replaces one by the t that it sweeps.
    for (int steps = 0; steps < kApproach; ++steps) {
      V sum[kCount] = {};
      I active[kCount] = {};
      const T* row = x;
      for (int64_t j = 0; j < n; ++j, row += stride)
        for (int i = 0; i < kCount; ++i) {
          const V e = load_vector(row + i * kVectorLanes<T>) - t_[i].p;
          active[i] = add_one_where(both_greater(greater(e, V{}), tau_[i], e), active[i]);
          sum[i] += min(max(e, V{}), tau_[i]);
        }
      for (int i = 0; i < kCount; ++i) {
        const V t = t_[i].p, f = sum[i] - (whole_[i] + fraction_[i]) * tau_[i];
        const M rises = greater(f, V{}), sloping = greater(active[i], I{});
        lo[i] = select(rises, t, lo[i]);
        f_lo[i] = select(rises, f, f_lo[i]);
        hi[i] = select(rises, hi[i], t);
        f_hi[i] = select(rises, f_hi[i], f);
        const V newton = t + f / max(__builtin_convertvector(active[i], V), V{} + 1);
        const V secant = lo[i] + (hi[i] - lo[i]) * (f_lo[i] / (f_lo[i] - f_hi[i]));
        auto inside = [&](V u) { return M(greater(u, lo[i]) & greater(hi[i], u)); };  // and so finite
        const V next = select(M(sloping & inside(newton)), newton, secant);
        t_[i].p = select(and_not(inside(next), equal(f, V{})), next, t);
      }
    }
  }

  // The root lies above lo and below the greatest entry.
  void bracket(int i, Pair lo, V high) {
    lo_[i] = lo;
    hi_[i] = {high, V{}};
    width_[i] = difference(hi_[i], lo_[i]);
    f_hi_[i] = (-whole_[i] - fraction_[i]) * tau_[i];
    last_g_[i] = last_h_[i] = I{} - 1;
    bad_[i] = I{};
  }

  void search(const T* x, int64_t stride, int64_t n) {
    bool searching[kCount], going = true;
    for (int i = 0; i < kCount; ++i) searching[i] = any(equal(status_[i], I{} + kSearching));
    // Before each turn t_ holds the next threshold of every lane that still searches. The others are swept along where
    // they share a vector with one, and stay as they are. What kShortPatience turns do not settle is not solved.
    for (int evaluations = 0; going && evaluations < kShortPatience; ++evaluations) {
      going = false;
      for (int i = 0; i < kCount; ++i) {
        if (!searching[i]) continue;
        searching[i] = evaluate(x + i * kVectorLanes<T>, stride, n, i, evaluations);
        going |= searching[i];
      }
    }
  }

  // A sweep at t, and what step() of newton.h makes of it; whether it leaves a lane searching.
  bool evaluate(const T* x, int64_t stride, int64_t n, int i, int steps) {
    const V tau = tau_[i], zero{};
    const Pair t = t_[i];
    const V ceiling = ceiling_of(t, tau);
    V part{};
    Pair sum{};  // and what its rounding has lost, as there may be thousands of parts
    I g{}, active{};
    // `part` is zero before each turn: it adds up no more than a run, so that few digits are lost.
    for (int64_t j = 0; j < n;) {
      for (const int64_t stop = run_end(j, n); j < stop; ++j) {
        const V v = load_vector(x + j * stride), e = v - t.p;
        const M is_above = greater(e, t.d), is_active = both_greater(is_above, ceiling, v);  // e > d tells x > p + d
        g = add_one_where(is_above, g);
        active = add_one_where(is_active, active);
        part = add_where(is_active, part, e);
      }
      const Pair next = two_sum(sum.p, part);
      sum = {next.p, sum.d + next.d};
      part = V{};
    }
    const I h = g - active;
    const M searching = equal(status_[i], I{} + kSearching), sloping = greater(active, I{});
    const V slope = __builtin_convertvector(active, V);
    const V ones = (__builtin_convertvector(h, V) - whole_[i]) - fraction_[i];  // h - k
    const V others = (__builtin_convertvector(g, V) - whole_[i]) - fraction_[i];
    const V rest = (ones * tau + sum.p) + sum.d, f = rest - slope * t.d;
    const Pair newton = two_sum(t.p, rest / select(sloping, slope, zero + 1));
    const M rises = greater(f, zero);
    Pair lo = select_pair(rises, t, lo_[i]), hi = select_pair(rises, hi_[i], t);
    V narrowed = difference(hi, lo);
    const M same = equal(g, last_g_[i]) & equal(h, last_h_[i]), done = same | equal(f, zero);
    const I bad = select(greater(narrowed, T(0.5) * width_[i]), bad_[i] + 1, I{});
    M wide = greater(narrowed, T(Rules::kWideBracket) * tau);
    auto inside = [&](Pair u) { return M(greater(difference(u, lo), zero) & greater(difference(hi, u), zero)); };
    const bool patient = steps < kShortWidePatience;
    M by_newton = sloping & inside(newton) & greater(I{} + Rules::kNewtonPatience, bad);
    if (!patient) by_newton = and_not(by_newton, wide);

    const M on = and_not(searching, done);
    Pair next = newton;
    f_lo_[i] = select(rises, f, f_lo_[i]);  // of a lane that is done these no longer matter
    f_hi_[i] = select(rises, f_hi_[i], f);
    if (any(and_not(on, by_newton))) {
      const M flat = and_not(M(on & wide), sloping);
      if (any(flat)) {  // as in Search::jump
        const Pair edge = edge_of(x, stride, n, i, rises);
        const M jumps = flat & inside(edge);
        lo = select_pair(M(jumps & rises), edge, lo);
        hi = select_pair(and_not(jumps, rises), edge, hi);
        narrowed = difference(hi, lo);
        wide = greater(narrowed, T(Rules::kWideBracket) * tau);
      }
      const V fraction = f_lo_[i] / (f_lo_[i] - f_hi_[i]);
      Pair secant = two_sum(lo.p, lo.d + narrowed * fraction), middle = two_sum(lo.p, lo.d + T(0.5) * narrowed);
      const I below = ordered(lo.p), above = ordered(hi.p);
      secant.d = select(wide, zero, secant.d);
      middle = select_pair(wide, {from((below >> 1) + (above >> 1) + (below & above & 1)), zero}, middle);
      M by_secant = inside(secant) & greater(I{} + Rules::kSecantPatience, bad);
      if (!patient) by_secant = and_not(by_secant, wide);
      next = select_pair(by_newton, newton, select_pair(by_secant, secant, middle));
    }
    lo_[i] = lo;
    hi_[i] = hi;
    const I status =
        select(equal(ones, zero), I{} + kGapBelow, select(equal(others, zero), I{} + kGapAbove, I{} + kFound));
    const Pair root = select_pair(same & equal(status, I{} + kFound), newton, t);

    t_[i] = select_pair(on, next, select_pair(searching, root, t));
    status_[i] = select(M(searching & done), status, status_[i]);
    width_[i] = narrowed;
    last_g_[i] = select(by_newton, g, I{} - 1);
    last_h_[i] = select(by_newton, h, I{} - 1);
    bad_[i] = bad;
    return any(on);
  }

  // The end of the piece of f around t on which no entry is active: the upper one or the lower one.
  Pair edge_of(const T* x, int64_t stride, int64_t n, int i, M upper) const {
    const Pair t = t_[i];
    V zero = V{} - kLargest<T>, one = V{} + kLargest<T>;
    for (int64_t j = 0; j < n; ++j) {
      const V v = load_vector(x + j * stride);
      const M is_above = greater(v - t.p, t.d);
      one = select(is_above, min(v, one), one);
      zero = select(is_above, zero, max(v, zero));
    }
    return select_pair(upper, two_sum(one, -tau_[i]), {zero, V{}});
  }

  void leave(const T* x, int64_t stride, int64_t n, const double* tau, double* p, double* d, bool* solved) {
    alignas(64) T head[kLanes], tail[kLanes];
    alignas(64) Count<T> status[kLanes];
    memcpy(status, status_, sizeof status);
    for (int i = 0; i < kCount; ++i) {
      store_vector<T>(t_[i].p, head + i * kVectorLanes<T>);
      store_vector<T>(t_[i].d, tail + i * kVectorLanes<T>);
    }
    Count<T> gaps = 0;
#pragma omp simd reduction(| : gaps)
    for (int l = 0; l < kLanes; ++l) {
      gaps |= status[l] > kFound;
      solved[l] = status[l] > kSearching;
      p[l] = double(head[l]);
      d[l] = double(tail[l]);
    }
    if (gaps) centre_gaps(x, stride, n, tau, p, d);
  }

  // No entry is active: t goes to the middle of the thresholds that all give this y.
  void centre_gaps(const T* x, int64_t stride, int64_t n, const double* tau, double* p, double* d) {
    alignas(64) T edge[kLanes];
    alignas(64) Count<T> status[kLanes];
    memcpy(status, status_, sizeof status);
    for (int i = 0; i < kCount; ++i) {
      const Pair t = t_[i];
      const V floor = from(ordered(t.p) + select(greater(V{}, t.d), I{} - 1, I{}));
      const V under_one = from(ordered(ceiling_of(t, tau_[i])) - 1);
      store_vector<T>(select(equal(status_[i], I{} + kGapBelow), under_one, floor), edge + i * kVectorLanes<T>);
    }
    LaneRange<T> range;
    range.clear(kLanes);
    sweep_gap(x, n, stride, kLanes, edge, range);
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      const hypersimplex::Pair t = gap_middle<T>(range.high[l], range.low[l], tau[l]);
      p[l] = status[l] > kFound ? t.p : p[l];
      d[l] = status[l] > kFound ? t.d : d[l];
    }
  }

  V whole_[kCount], fraction_[kCount];  // of the mass
  V tau_[kCount], width_[kCount], f_lo_[kCount], f_hi_[kCount];
  Pair t_[kCount], lo_[kCount], hi_[kCount];
  I last_g_[kCount], last_h_[kCount], bad_[kCount], status_[kCount];
};

// Solves the vectors of a panel side by side, up to four groups of lanes at a time.
template <class T>
class ShortVectors {
 public:
  // x is [n, width], rows `stride` apart. Sets `solved` by column; true where that is all of them.
  bool solve(const Panel& panel, const T* x, int64_t stride, const PerVector& k, const PerVector& tau, double* p,
             double* d, bool* solved) {
    bool all = true;
    for (int first = 0; first < panel.live;)
      all &= solve_groups<4>(panel, x + first, stride, first, k, tau, p, d, solved);
    return all;
  }

  // The same of columns that do not lie near each other, of which entries(step, steps, buffer) gives a block: they are
  // copied group by group.
  template <class Entries>
  bool solve_copied(const Panel& panel, const Entries& entries, const PerVector& k, const PerVector& tau, double* p,
                    double* d, bool* solved) {
    const Plan& plan = panel.plan;
    const int lanes = panel.lanes();
    const ScratchArray<T> groups(plan.n * lanes);
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk)
      for_each_block(plan, chunk, [&](int64_t step, int64_t steps) {
        const ScratchArray<T> buffer(kBlock);
        const View<const T> from = entries(step, steps, buffer);
        for (int64_t s = 0; s < steps; ++s)
          for (int g = 0; g < lanes; g += kGroup)
            memcpy(groups + g * plan.n + (step + s) * kGroup, from.at + s * from.stride + g, kGroup * sizeof(T));
      });
    bool all = true;
    for (int first = 0; first < panel.live;)
      all &= solve_groups<1>(panel, groups + first * plan.n, kGroup, first, k, tau, p, d, solved);
    return all;
  }

 private:
  // The lanes from `first` on, x theirs, kGroups groups of them or as many as there are, and moves `first` behind them.
  // Not inlined, so that its frame does not add to those of what comes after.
  template <int kGroups>
  __attribute__((noinline)) bool solve_groups(const Panel& panel, const T* x, int64_t stride, int& first,
                                              const PerVector& k, const PerVector& tau, double* p, double* d,
                                              bool* solved) {
    const Plan& plan = panel.plan;
    if constexpr (kGroups > 1) {
      if (panel.lanes() - first < kGroups * kGroup)
        return solve_groups<kGroups / 2>(panel, x, stride, first, k, tau, p, d, solved);
    }
    constexpr int kLanes = kGroups * kGroup;
    alignas(64) double mass[kLanes], temperature[kLanes], quantile[kLanes], root_p[kLanes], root_d[kLanes];
    const int live = int(smaller(kLanes, panel.live - first)), given = k.values || tau.values ? live : 1;
    for (int l = 0; l < given; ++l) {
      const int64_t v = panel.vector(first + l);
      temperature[l] = at(tau, v);
      mass[l] = regular<T>(0, 0, temperature[l]) ? at(k, v) : 0;
      if (!(mass[l] >= 0 && mass[l] <= double(plan.n))) mass[l] = 0;  // not for this search
      if (mass[l] != last_mass_) last_quantile_ = normal_quantile(1 - mass[l] / double(plan.n));
      last_mass_ = mass[l];
      quantile[l] = last_quantile_;
    }
    for (int l = given; l < kLanes; ++l) {  // all alike, or lanes whose results nobody wants
      mass[l] = mass[0];
      temperature[l] = temperature[0];
      quantile[l] = quantile[0];
    }
    ShortSearch<T, kGroups>().solve(x, stride, plan.n, mass, temperature, quantile, root_p, root_d, solved + first);
    memcpy(p + first, root_p, live * sizeof(double));
    memcpy(d + first, root_d, live * sizeof(double));
    const bool all = memchr(solved + first, false, live) == nullptr;
    first += kLanes;
    return all;
  }

  double last_mass_ = -1, last_quantile_ = 0;
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
