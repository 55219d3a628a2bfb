// The root search for one vector, shared by the CPU and the CUDA solver: they differ in how they sweep over the
// entries, and agree in what they do with the counts and the sum that a sweep returns.
//
// Wanted is t with  f(t) = sum_j clip(x_j - t, 0, tau) - k tau = 0,  k strictly between 0 and the number of entries.
// f is piecewise linear and non-increasing. A sweep at t returns g = #{x > t}, h = #{x >= t + tau} and, over the g - h
// active entries, S = sum (x - p). On its linear piece the root is  p + ((h - k) tau + S) / (g - h):  Newton's step.
// Unsafeguarded, Newton cycles; here it stays inside a bracket and yields to the secant and to bisection.
//
// t is the unevaluated sum p + d of doubles with p representable in T and nearest to t, so that x - p is exact near
// the threshold and nothing depends on the scale of x / tau. A double resolves t to 2^-1074, an ulp of tau only if tau
// is a normal number: smaller ones are refused.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define HYPERSIMPLEX_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HYPERSIMPLEX_HOST_DEVICE __attribute__((always_inline)) inline  // never out of line: csrc/cpu/simd/isa.h
#endif

namespace hypersimplex {

// ---- floating-point numbers of type T, in order ----

template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = int32_t;
};
template <>
struct BitsOf<double> {
  using type = int64_t;
};

template <class T>
constexpr T kLargest = T(sizeof(T) == 4 ? 3.402823466385288598e38 : 1.797693134862315708e308);

template <class T>
HYPERSIMPLEX_HOST_DEVICE bool is_finite(T v) {
  return v - v == 0;
}
template <class T>
HYPERSIMPLEX_HOST_DEVICE bool is_nan(T v) {
  return v != v;
}

HYPERSIMPLEX_HOST_DEVICE bool is_temperature(double tau) { return tau >= 0x1p-1022 && tau < HUGE_VAL; }

// Temperatures below this can be summed up, those of a block of entries in T and those of a vector in double; for
// others f is had in another unit, a power of two.
template <class T>
constexpr double kMostTau = double(kLargest<T>) * (sizeof(T) == 4 ? 0x1p-14 : 0x1p-64);
template <class T>
HYPERSIMPLEX_HOST_DEVICE double unit_of(double tau) {
  return tau < kMostTau<T> ? 1 : 0x1p-64;
}

// An integer that orders as the number does: 0 for both zeros, one step per representable number.
template <class T>
HYPERSIMPLEX_HOST_DEVICE typename BitsOf<T>::type to_ordered(T v) {
  using Int = typename BitsOf<T>::type;
  Int bits;
  memcpy(&bits, &v, sizeof v);
  constexpr Int kMagnitude = Int(~(Int(1) << (8 * sizeof(Int) - 1)));
  return bits < 0 ? -(bits & kMagnitude) : bits;
}

template <class T>
HYPERSIMPLEX_HOST_DEVICE T from_ordered(typename BitsOf<T>::type ordered) {
  using Int = typename BitsOf<T>::type;
  constexpr Int kSign = Int(Int(1) << (8 * sizeof(Int) - 1));
  Int bits = ordered < 0 ? Int(-ordered) | kSign : ordered;
  T v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

// ---- thresholds ----

struct Pair {
  double p, d;
};

// p + d with p moved to the nearest finite number of type T; exact (two-sum).
template <class T>
HYPERSIMPLEX_HOST_DEVICE Pair renormalised(double p, double d) {
  constexpr double kMost = kLargest<T>;
  double s = p + d, shifted = s - p;
  if (sizeof(T) == sizeof(double) && s - s != 0) {  // beyond every double
    const double most = s < 0 ? -kMost : kMost;
    return {most, (p - most) + d};
  }
  double error = (p - (s - shifted)) + (d - shifted);
  double within = s < -kMost ? -kMost : s > kMost ? kMost : s;
  double nearest = double(T(within));
  return {nearest, (s - nearest) + error};
}

HYPERSIMPLEX_HOST_DEVICE double difference(Pair u, Pair v) { return (u.p - v.p) + (u.d - v.d); }

// The largest T at or below t, and the smallest T at or above t + tau: an entry is active iff  floor < x < ceiling,
// and is one iff  x >= ceiling.
template <class T>
HYPERSIMPLEX_HOST_DEVICE T active_floor(Pair t) {
  T v = T(t.p);
  return t.d < 0 ? from_ordered<T>(to_ordered(v) - 1) : v;
}
template <class T>
HYPERSIMPLEX_HOST_DEVICE T active_ceiling(Pair t, double tau) {
  Pair end = renormalised<T>(t.p, t.d + tau);
  T v = T(end.p);
  return end.d > 0 ? from_ordered<T>(to_ordered(v) + 1) : v;
}

// ---- the first guess ----

// The threshold at which entries that are normal with this mean and standard deviation have y = q on average.
// E clip((x - t) / tau, 0, 1) = P(x - tau U > t) with U uniform on (0, 1); x - tau U is taken as normal but for its
// kurtosis (Cornish and Fisher). z is the standard normal quantile of 1 - q.
template <class F>
HYPERSIMPLEX_HOST_DEVICE F moment_guess(F mean, F variance, F tau, F z) {
  F uniform = tau * tau / F(12), total = variance + uniform;
  F flatness = uniform / total;
  F excess = F(-1.2) * flatness * flatness;
  return mean - F(0.5) * tau + F(sqrt(total)) * (z + (z * z * z - 3 * z) * (excess / F(24)));
}

// Standard normal quantile to about 5e-4 (Abramowitz and Stegun 26.2.23); q in (0, 1).
template <class F>
HYPERSIMPLEX_HOST_DEVICE F normal_quantile(F q) {
  F tail = q < F(0.5) ? q : 1 - q;
  F u = F(sqrt(-2 * F(log(tail))));
  F z = u - (F(2.515517) + u * (F(0.802853) + u * F(0.010328))) /
                (1 + u * (F(1.432788) + u * (F(0.189269) + u * F(0.001308))));
  return q < F(0.5) ? -z : z;
}

// ---- the search ----

struct Sweep {
  double g, h, S;  // counts are exact in doubles up to 2^53
};

enum class SearchStatus : int {
  kSearching = 0,
  kFound = 1,     // t is the root
  kGapBelow = 2,  // the entries at or above t + tau are the k ones, every other entry is 0
  kGapAbove = 3,  // the entries above t are the k ones, every other entry is 0
};

HYPERSIMPLEX_HOST_DEVICE bool is_gap(SearchStatus status) {
  return status == SearchStatus::kGapBelow || status == SearchStatus::kGapAbove;
}

template <class T>
struct Search {
  // Of the step, which csrc/cpu/projection/solvers/short_vectors.h takes for many vectors abreast: consecutive steps
  // that did not halve the bracket until Newton's step and the secant are no longer trusted; how many tau a bracket is
  // wide.
  static constexpr int kNewtonPatience = 6, kSecantPatience = 2;
  static constexpr double kWideBracket = 64;
  static constexpr int kPatience = 16;                               // steps until a wide bracket is bisected
  static constexpr int kMostSteps = 48, kLastStep = 256;             // of step_to_end()
  static constexpr double kNear = 1. / 16;                           // of an entry
  static constexpr double kTight = sizeof(T) == 4 ? 1e-9 : 0x1p-50;  // of tau, to which rounding lets f tell the root
  double k, tau;
  Pair t;       // where f is to be evaluated next
  Pair lo, hi;  // f(lo) > 0 > f(hi)
  double f_lo, f_hi;
  double last_g, last_h;  // the counts whose closed form t is; -1 when t is none
  int bad;                // consecutive steps that did not halve the bracket
  int flat;               // the last step found no entry active and moved hi (-1) or lo (+1), and a jump() pays; or 0
  int jumps;              // how many more may pay
  int steps;
  SearchStatus status;

  // `count` finite entries lie between min and max, `infinite` are +inf; infinite < k < infinite + count. No entry's y
  // exceeds the greatest one's, and none falls below the least one's: that bounds t before any sweep. z is the standard
  // normal quantile of 1 - q, q the share of the finite entries' total that they are to have, (k - infinite) / count.
  template <class Guess>
  HYPERSIMPLEX_HOST_DEVICE void start(double k_, double tau_, double count, double infinite, T min, T max, double mean,
                                      double variance, Guess z) {
    set(k_, tau_, {double(min), -tau_}, {double(max), 0.0});
    f_lo = (count + infinite - k) * (tau * unit());
    f_hi = (infinite - k) * (tau * unit());
    double share = tau * ((k - infinite) / count);
    Pair least = renormalised<T>(double(min), -share), most = renormalised<T>(double(max), -share);
    t = renormalised<T>(moment_guess(Guess(mean), Guess(variance), Guess(tau), z), 0.0);
    if (!(difference(t, least) > 0)) t = least;  // also where the moments overflowed
    if (difference(t, most) > 0) t = most;
  }

  // The same, unless the search is over before it begins: special rows (State in hypersimplex.h). Of n entries, `count`
  // are finite, `infinite` are +inf and `nan` are no numbers.
  // Guess: in what the first guess is computed, float where that takes less time.
  template <class Guess = double>
  HYPERSIMPLEX_HOST_DEVICE void begin(double k_, double tau_, double n, double count, double infinite, double nan,
                                      T min, T max, double mean, double variance) {
    status = SearchStatus::kFound;
    if (!(k_ >= 0 && k_ <= n && is_temperature(tau_)) || nan > 0) {
      t = {NAN, 0};
    } else if (infinite >= k_) {
      t = {HUGE_VAL, k_ > 0 ? k_ / infinite : 0};
    } else if (k_ >= infinite + count) {
      t = {-HUGE_VAL, 0};
    } else {
      start(k_, tau_, count, infinite, min, max, mean, variance,
            Guess(normal_quantile(Guess(1 - (k_ - infinite) / count))));
    }
  }

  // Starts from a bracket whose ends have been swept; false where the root is not between them.
  HYPERSIMPLEX_HOST_DEVICE bool start_between(double k_, double tau_, Pair lo_, Pair hi_, const Sweep& at_lo,
                                              const Sweep& at_hi) {
    set(k_, tau_, lo_, hi_);
    f_lo = value(at_lo, lo);
    f_hi = value(at_hi, hi);
    if (!(f_lo > 0 && f_hi < 0)) return false;
    aim(true);
    return true;
  }

  // Of values of f, and of S as a sweep is to return it.
  HYPERSIMPLEX_HOST_DEVICE double unit() const { return unit_of<T>(tau); }

  // f(u) by the sweep at u
  HYPERSIMPLEX_HOST_DEVICE double value(const Sweep& at, Pair u) const {
    return (at.h - k) * (tau * unit()) + at.S - (at.g - at.h) * (u.d * unit());
  }

  HYPERSIMPLEX_HOST_DEVICE bool inside(Pair u) const { return difference(u, lo) > 0 && difference(hi, u) > 0; }

  // A wide bracket is narrowed at numbers of type T alone: entries are such numbers, so where those are sparse,
  // thresholds between two of them differ only within tau below the upper one.
  HYPERSIMPLEX_HOST_DEVICE bool wide() const { return difference(hi, lo) * (1 / kWideBracket) > tau; }

  // The middle of the bracket: of the numbers between its ends where it is wide, so that one far outlier costs few
  // steps, and of its length where it is narrow.
  HYPERSIMPLEX_HOST_DEVICE Pair bisected() const {
    if (!wide()) return renormalised<T>(lo.p, lo.d + 0.5 * difference(hi, lo));
    auto below = to_ordered(T(lo.p)), above = to_ordered(T(hi.p));
    Pair middle{double(from_ordered<T>((below >> 1) + (above >> 1) + (below & above & 1))), 0.0};
    if (inside(middle)) return middle;
    Pair end = renormalised<T>(hi.p, -tau);  // neighbours: the sloping part ends here
    return inside(end) ? end : Pair{lo.p, 0.0};
  }

  // Takes the sweep at t and moves t to where the next one is due, or sets status.
  // Invariant: the root lies between lo and hi, which are never evaluated again.
  HYPERSIMPLEX_HOST_DEVICE void step(const Sweep& at) {
    double active = at.g - at.h;
    double rest = (at.h - k) * (tau * unit()) + at.S;
    double f = value(at, t);
    Pair newton = active > 0 ? renormalised<T>(t.p, rest / active / unit()) : t;
    double width = difference(hi, lo);
    if (f > 0) {
      lo = t;
      f_lo = f;
    } else {
      hi = t;
      f_hi = f;
    }
    double narrowed = difference(hi, lo);
    flat = 0;
    bool same = at.g == last_g && at.h == last_h;  // t solves these very counts, so newton does, and exactly
    bool tight = narrowed <= kTight * tau;         // rounding decides on which side of t an entry falls
    if (same || tight || f == 0) {
      // With h = k or g = k on the root's own piece every active entry is exactly zero, or exactly one.
      status = at.h == k ? SearchStatus::kGapBelow : at.g == k ? SearchStatus::kGapAbove : SearchStatus::kFound;
      if (same && status == SearchStatus::kFound) t = newton;  // a gap is told by the counts at t itself
      return;
    }
    bad = narrowed > 0.5 * width ? bad + 1 : 0;
    ++steps;
    // While the bracket is wide, halving its length may mean little: after kPatience steps only bisection is left,
    // which takes at most one step per bit of T.
    bool patient = steps < kPatience || !wide();
    if (active > 0 && bad < kNewtonPatience && patient && inside(newton)) {
      t = newton;
      last_g = at.g;
      last_h = at.h;
      return;
    }
    if (active == 0 && wide() && jumps-- > 0) flat = f > 0 ? 1 : -1;
    aim(bad < kSecantPatience && patient);
  }

  // Whether t, where a sweep counted g and h, is the closed form of these very counts: then it is the root, and what
  // else the sweep would sum up is not needed. Otherwise step() has to follow.
  HYPERSIMPLEX_HOST_DEVICE bool confirmed(double g, double h) {
    if (!(g == last_g && h == last_h)) return false;
    status = h == k ? SearchStatus::kGapBelow : g == k ? SearchStatus::kGapAbove : SearchStatus::kFound;
    return true;
  }

  // Whether t is likely the root: Newton's step from an end of the bracket, where the mass was wrong by a small part of
  // an entry, so that hardly any lies between there and t, and a sweep would count the same.
  HYPERSIMPLEX_HOST_DEVICE bool nearly_found() const {
    const double below = difference(t, lo), above = difference(hi, t);
    return last_g >= 0 && (below < above ? below : above) * (last_g - last_h) < kNear * tau;
  }

  // A step of a search that ends whatever comes: where it does not settle, bisection alone goes on, which takes as many
  // steps as T has bits, and a few.
  HYPERSIMPLEX_HOST_DEVICE void step_to_end(const Sweep& at) {
    step(at);
    if (status != SearchStatus::kSearching || steps < kMostSteps) return;
    t = bisected();
    last_g = last_h = -1;
    flat = 0;
    if (steps >= kLastStep) status = SearchStatus::kFound;
  }

  // With no entry active f is constant from the greatest entry below, `zero`, to tau below the least one above, `one`:
  // the end of the bracket that moved there moves on. This costs the caller a sweep and may be left out; it is what
  // keeps far outliers and entries masked with huge numbers cheap.
  HYPERSIMPLEX_HOST_DEVICE void jump(T zero, T one) {
    Pair edge = flat < 0 ? Pair{double(zero), 0.0} : renormalised<T>(double(one), -tau);
    if (inside(edge)) (flat < 0 ? hi : lo) = edge;
    flat = 0;
    aim(bad < kSecantPatience && steps < kPatience);
  }

 private:
  HYPERSIMPLEX_HOST_DEVICE void set(double k_, double tau_, Pair lo_, Pair hi_) {
    k = k_;
    tau = tau_;
    lo = lo_;
    hi = hi_;
    last_g = last_h = -1;
    bad = 0;
    flat = 0;
    jumps = 2;
    steps = 0;
    status = SearchStatus::kSearching;
  }

  HYPERSIMPLEX_HOST_DEVICE void aim(bool by_secant) {
    last_g = last_h = -1;
    Pair secant = renormalised<T>(lo.p, lo.d + difference(hi, lo) * (f_lo / (f_lo - f_hi)));
    if (wide()) secant.d = 0;
    t = by_secant && inside(secant) ? secant : bisected();
  }
};

// The middle of the thresholds that separate ones at or above `one` from zeros at or below `zero`.
template <class T>
HYPERSIMPLEX_HOST_DEVICE Pair gap_middle(T zero, T one, double tau) {
  double half = (0.5 * double(one) - 0.5 * double(zero)) - 0.5 * tau;  // as one - zero may overflow
  return renormalised<T>(double(zero), half > 0 ? half : 0.0);
}

// The whole part of a fraction of a number, of the fraction as it is written: .29 of 100 is 29, though .29 * 100 in
// floating point lies just below.
HYPERSIMPLEX_HOST_DEVICE double whole_part(double fraction, double number) {
  return floor(fraction * number * (1 + 2 * 2.220446049250313e-16));
}

}  // namespace hypersimplex
