// The root search of newton.h for one row of adjacent entries that has been left by top.h: its sweeps read the row in
// place, in vectors of which the last reach back over entries that came before. Rows that are not finite, or whose root
// is not found in a few steps on a slope of f, are left to the general solver.
#pragma once

#include "solve.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

template <class T>
class RowSearch {
 public:
  explicit RowSearch(int64_t n) : n_(n), full_(n / kGroup * kGroup) {
    for (int i = 0; i < kVectors<T>; ++i) rest_[i] = last_lanes<T>(i, n - full_);
  }

  bool solve(const T* x, double mass, double tau, double* p, double* d) {
    if (!(mass > 0 && mass < double(n_) && regular<T>(0, 0, tau))) return false;
    if (mass != mass_) quantile_ = normal_quantile(1 - mass / double(n_));
    mass_ = mass;
    if (!start(x, tau)) return false;
    while (search_.status == SearchStatus::kSearching) {
      search_.step(sweep(x));
      if (search_.flat != 0 || search_.steps > kPatience) return false;
    }
    *p = search_.t.p;
    *d = search_.t.d;
    return search_.status == SearchStatus::kFound;
  }

 private:
  using V = Vector<T>;
  static constexpr int kPatience = 12;

  // Calls body(i, j, fresh) for the vectors at j, the i-th of their group, where fresh(m) is the mask m without entries
  // that came before; and rest() between runs of steps.
  template <class Body, class Rest>
  void for_each_vector(const Body& body, const Rest& rest) const {
    for (int64_t j = 0; j < full_;) {
      for (const int64_t end = smaller(j + kRun * kGroup, full_); j < end; j += kGroup)
        for (int i = 0; i < kVectors<T>; ++i) body(i, j + i * kVectorLanes<T>, [](auto m) { return m; });
      rest();
    }
    if (full_ == n_) return;
    for (int i = 0; i < kVectors<T>; ++i)
      body(i, n_ - kGroup + i * kVectorLanes<T>, [&](auto m) { return Mask<T>(m & rest_[i]); });
    rest();
  }

  // Moments and first guess; false where an entry is not finite.
  bool start(const T* x, double tau) {
    const V origin = V{} + x[0];
    V sum[kVectors<T>] = {}, squares[kVectors<T>] = {}, low[kVectors<T>], high[kVectors<T>];
    for (int i = 0; i < kVectors<T>; ++i) low[i] = high[i] = origin;
    alignas(64) double sums[kGroup] = {}, all_squares[kGroup] = {};
    for_each_vector(
        [&](int i, int64_t j, const auto& fresh) {
          const V v = load_vector(x + j), e = where(fresh(equal(origin, origin)), v - origin);
          sum[i] += e;
          squares[i] += e * e;
          low[i] = either(greater(low[i], v), v, low[i]);
          high[i] = either(greater(v, high[i]), v, high[i]);
        },
        [&] { flush_run(sum, sums), flush_run(squares, all_squares); });
    const double mean = total(sums) / double(n_), variance = total(all_squares) / double(n_) - mean * mean;
    if (mean - mean != 0) return false;
    alignas(64) T least[kGroup], most[kGroup];
    memcpy(least, low, sizeof least);
    memcpy(most, high, sizeof most);
    for (int half = kGroup / 2; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) {
        least[l] = least[l + half] < least[l] ? least[l + half] : least[l];
        most[l] = most[l + half] > most[l] ? most[l + half] : most[l];
      }
    }
    search_.start(mass_, tau, double(n_), 0, least[0], most[0], double(x[0]) + mean, variance > 0 ? variance : 0,
                  quantile_);
    return true;
  }

  Sweep sweep(const T* x) const {
    const Pair t = search_.t;
    const V floor = V{} + active_floor<T>(t), ceiling = V{} + active_ceiling<T>(t, search_.tau), p = V{} + T(t.p);
    V part[kVectors<T>] = {};
    Counts<T> above[kVectors<T>] = {}, active[kVectors<T>] = {};
    alignas(64) double sums[kGroup] = {};
    for_each_vector(
        [&](int i, int64_t j, const auto& fresh) {
          const V v = load_vector(x + j);
          const Mask<T> is_above = fresh(greater(v, floor)), is_active = both_greater(is_above, ceiling, v);
          above[i] = counted(is_above, above[i]);
          active[i] = counted(is_active, active[i]);
          part[i] = added(is_active, part[i], v - p);
        },
        [&] { flush_run(part, sums); });
    const double g = count(above);
    return {g, g - count(active), total(sums)};
  }

  static void flush_run(V (&part)[kVectors<T>], double* sums) {
    flush_vectors(part, sums);
    for (V& v : part) v = V{};
  }
  static double total(double* sums) {
    for (int half = kGroup / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) sums[l] += sums[l + half];
    return sums[0];
  }
  static double count(const Counts<T>* lanes) {
    alignas(64) Count<T> counts[kGroup];
    memcpy(counts, lanes, sizeof counts);
    for (int half = kGroup / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) counts[l] += counts[l + half];
    return double(counts[0]);
  }

  const int64_t n_, full_;     // entries of a row, and in groups of their own
  Mask<T> rest_[kVectors<T>];  // the lanes of the last group that are new
  double mass_ = -1, quantile_ = 0;
  Search<T> search_;
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
