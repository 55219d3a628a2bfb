// Sorts the entries in descending order and finds, by bisection over the breakpoints x_j and x_j - tau of f, the linear
// piece that holds the root; there the root is the closed form. Every sum is over differences to the threshold at hand,
// in double, so neither the number of entries nor the scale of x / tau costs accuracy.
#include "exact.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace hypersimplex {
namespace cpu {
namespace {

template <class T>
class SortedEntries {
 public:
  SortedEntries(T* x, int64_t count, double k, double tau) : x_(x), count_(count), k_(k), tau_(tau) {
    std::sort(x, x + count, std::greater<T>());
  }

  ExactRoot solve() const {
    // t = x_j - shift is the last breakpoint with f(t) >= 0 among each kind; the higher of the two starts the piece.
    int64_t by_zero = first_nonnegative(0), by_one = first_nonnegative(tau_);
    Pair start = {double(x_[count_ - 1]), -tau_};
    for (Pair candidate : {breakpoint(by_zero, 0), breakpoint(by_one, tau_)})
      if (candidate.p > -HUGE_VAL && difference(candidate, start) > 0) start = candidate;
    // Just above `start`: entries at it are no longer active, entries at its ceiling no longer one.
    int64_t g = above(start, 0), h = above(start, tau_);
    if (double(h) == k_) return {start, SearchStatus::kGapBelow};
    if (double(g) == k_) return {start, SearchStatus::kGapAbove};
    if (g == h) return {start, SearchStatus::kFound};
    double beyond = f(start) / double(g - h);
    return {renormalised<T>(start.p, start.d + beyond), SearchStatus::kFound};
  }

 private:
  Pair breakpoint(int64_t j, double shift) const {
    return j < count_ ? renormalised<T>(double(x_[j]), -shift) : Pair{-HUGE_VAL, 0};
  }
  // How many entries lie above t + shift.
  int64_t above(Pair t, double shift) const {
    return std::partition_point(x_, x_ + count_, [&](T v) { return (double(v) - t.p) - t.d > shift; }) - x_;
  }
  double f(Pair t) const {
    int64_t g = above(t, 0), h = above(t, tau_);
    double sum = (double(h) - k_) * tau_;
    for (int64_t j = h; j < g; ++j) sum += (double(x_[j]) - t.p) - t.d;
    return sum;
  }
  // f grows as t falls, that is with j.
  int64_t first_nonnegative(double shift) const {
    int64_t low = 0, high = count_;
    while (low < high) {
      int64_t middle = low + (high - low) / 2;
      if (f(breakpoint(middle, shift)) >= 0)
        high = middle;
      else
        low = middle + 1;
    }
    return low;
  }

  T* x_;
  int64_t count_;
  double k_, tau_;
};

}  // namespace

ExactRoot exact_root(float* x, int64_t count, double k, double tau) {
  return SortedEntries<float>(x, count, k, tau).solve();
}
ExactRoot exact_root(double* x, int64_t count, double k, double tau) {
  return SortedEntries<double>(x, count, k, tau).solve();
}

}  // namespace cpu
}  // namespace hypersimplex
