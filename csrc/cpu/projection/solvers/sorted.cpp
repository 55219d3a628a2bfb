// Sorts the entries in descending order and finds, by bisection over the breakpoints x_j and x_j - tau of f, the linear
// piece that holds the root; there the root is the closed form. Which entries lie on which side of a breakpoint is told
// exactly, and every sum is over differences to its entry, in double and in the unit of newton.h: so neither the number
// of entries nor the scale of x / tau costs accuracy.
#include "cpu/projection/solvers/sorted.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace hypersimplex {
namespace cpu {
namespace {

// The sign of (a - b) - tau.
int compare(double a, double b, double tau) {
  const double s = a - b, shifted = s - a, error = (a - (s - shifted)) - (b + shifted);  // a - b = s + error
  if (s != tau) return s > tau ? 1 : -1;
  return (error > 0) - (error < 0);
}

template <class T>
class SortedEntries {
 public:
  SortedEntries(T* x, int64_t count, double k, double tau)
      : x_(x), count_(count), k_(k), tau_(tau), unit_(unit_of<T>(tau)) {
    std::sort(x, x + count, std::greater<T>());
  }

  Pair solve() const {
    // The last breakpoint with f >= 0 among each kind; the higher of the two starts the piece.
    const Breakpoint by_zero = last_nonnegative(false), by_one = last_nonnegative(true);
    Breakpoint start = by_one;  // there is one: f > 0 at tau below the least entry
    if (by_zero.j < count_ && compare(x_[by_one.j], x_[by_zero.j], tau_) < 0) start = by_zero;
    // Just above it, entries at it are no longer active, entries at its ceiling no longer one.
    const int64_t g = active_end(start), h = ones_end(start);
    if (double(h) == k_ || double(g) == k_) {
      const int64_t ones = double(h) == k_ ? h : g;
      return gap_middle<T>(x_[ones], x_[ones - 1], tau_);
    }
    // From the entry, not from the breakpoint tau below it: where y is small everywhere that difference is small beside
    // tau.
    const double beyond = g > h ? f(start, h) / double(g - h) / unit_ : 0;
    return renormalised<T>(double(x_[start.j]), g > h || !start.one ? beyond : -tau_);
  }

 private:
  struct Breakpoint {  // x_j - tau, at which x_j becomes one, or x_j, at which it becomes active
    int64_t j;
    bool one;
  };
  template <class Above>
  int64_t count_where(const Above& above) const {
    return std::partition_point(x_, x_ + count_, above) - x_;
  }
  // How many entries lie above the breakpoint, and above its ceiling, tau higher.
  int64_t active_end(Breakpoint t) const {
    const double edge = x_[t.j];
    if (t.one) return count_where([&](T v) { return compare(edge, v, tau_) < 0; });
    return count_where([&](T v) { return double(v) > edge; });
  }
  int64_t ones_end(Breakpoint t) const {
    const double edge = x_[t.j];
    if (t.one) return count_where([&](T v) { return double(v) > edge; });
    return count_where([&](T v) { return compare(v, edge, tau_) > 0; });
  }
  // f at t = x_j - tau is (g - k) tau + sum (x - x_j) over the active entries, at t = x_j it is (h - k) tau + that sum.
  double f(Breakpoint t) const { return f(t, t.one ? active_end(t) : ones_end(t)); }
  double f(Breakpoint t, int64_t ones) const {
    const int64_t g = active_end(t), h = ones_end(t);
    double sum = (double(ones) - k_) * (tau_ * unit_);
    for (int64_t j = h; j < g; ++j) sum += double(x_[j]) * unit_ - double(x_[t.j]) * unit_;
    return sum;
  }
  // f grows as t falls, that is with j: it is negative at all breakpoints before low, and nowhere from high on.
  Breakpoint last_nonnegative(bool one) const {
    int64_t low = 0, high = count_;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (f({middle, one}) >= 0)
        high = middle;
      else
        low = middle + 1;
    }
    return {low, one};
  }

  T* x_;
  int64_t count_;
  double k_, tau_, unit_;
};

}  // namespace

Pair exact_root(float* x, int64_t count, double k, double tau) {
  return SortedEntries<float>(x, count, k, tau).solve();
}
Pair exact_root(double* x, int64_t count, double k, double tau) {
  return SortedEntries<double>(x, count, k, tau).solve();
}

}  // namespace cpu
}  // namespace hypersimplex
