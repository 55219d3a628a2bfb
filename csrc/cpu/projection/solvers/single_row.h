// The root search of newton.h for one row of adjacent entries that has been left by row_candidates.h: its sweeps read
// the row in place. Rows that are not finite, or whose root is not found in a few steps on a slope of f, are left to
// the general solver.
#pragma once

#include "cpu/projection/lane_thresholds.h"
#include "cpu/projection/row_walk.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

template <class T>
class SingleRow {
 public:
  explicit SingleRow(int64_t n) : count_(double(n)), vectors_(n) {}

  bool solve(const T* x, double mass, double tau, double* p, double* d) {
    if (!(mass > 0 && mass < count_ && regular<T>(0, 0, tau))) return false;
    cpu::note(cpu::Solver::kSingleRow);
    if (mass != mass_) quantile_ = normal_quantile(1 - mass / count_);
    mass_ = mass;
    if (!start(x, tau)) return false;
    // Before each turn search_.t is the next threshold, which lies in the bracket; kRowPatience bounds the turns.
    while (search_.status == SearchStatus::kSearching) {
      search_.step(sweep(x));
      if (search_.flat != 0 || search_.steps > kRowPatience) return false;
    }
    *p = search_.t.p;
    *d = search_.t.d;
    return search_.status == SearchStatus::kFound;
  }

 private:
  using V = Vector<T>;

  // Moments and first guess; false where an entry is not finite.
  bool start(const T* x, double tau) {
    const V origin = V{} + x[0];
    V sum[kVectors<T>] = {}, squares[kVectors<T>] = {}, low[kVectors<T>], high[kVectors<T>];
    for (int i = 0; i < kVectors<T>; ++i) low[i] = high[i] = origin;
    alignas(64) double sums[kGroup] = {}, sums_of_squares[kGroup] = {};
    T least = x[0], most = x[0];
    vectors_.for_each(
        [&](int i, int64_t j, const auto& fresh) {
          const V v = load_vector(x + j), e = zero_unless(fresh(equal(origin, origin)), v - origin);
          sum[i] += e;
          squares[i] += e * e;
          low[i] = select(greater(low[i], v), v, low[i]);
          high[i] = select(greater(v, high[i]), v, high[i]);
        },
        [&] { flush_run(sum, sums), flush_run(squares, sums_of_squares); });
    for (int i = 0; i < kVectors<T>; ++i) {
      for (int l = 0; l < kVectorLanes<T>; ++l) {
        least = low[i][l] < least ? low[i][l] : least;
        most = high[i][l] > most ? high[i][l] : most;
      }
    }
    LaneSums::fold(sums, kGroup, 1);
    LaneSums::fold(sums_of_squares, kGroup, 1);
    const double mean = sums[0] / count_, variance = sums_of_squares[0] / count_ - mean * mean;
    if (!is_finite(mean)) return false;
    search_.start(mass_, tau, count_, 0, least, most, double(x[0]) + mean, variance > 0 ? variance : 0, quantile_);
    return true;
  }

  Sweep sweep(const T* x) const {
    const Pair t = search_.t;
    const V floor = V{} + active_floor<T>(t), ceiling = V{} + active_ceiling<T>(t, search_.tau), p = V{} + T(t.p);
    V part[kVectors<T>] = {};
    Counts<T> above[kVectors<T>] = {}, active[kVectors<T>] = {};
    alignas(64) double g[kGroup] = {}, slope[kGroup] = {}, rest[kGroup] = {};
    vectors_.for_each(
        [&](int i, int64_t j, const auto& fresh) {
          const V v = load_vector(x + j);
          const Mask<T> is_above = fresh(greater(v, floor)), is_active = both_greater(is_above, ceiling, v);
          above[i] = add_one_where(is_above, above[i]);
          active[i] = add_one_where(is_active, active[i]);
          part[i] = add_where(is_active, part[i], v - p);
        },
        [&] { flush_run(part, rest); });
    flush_vectors(above, g);
    flush_vectors(active, slope);
    for (double* lanes : {g, slope, rest}) LaneSums::fold(lanes, kGroup, 1);
    return {g[0], g[0] - slope[0], rest[0]};
  }

  static void flush_run(V (&part)[kVectors<T>], double* sums) {
    flush_vectors(part, sums);
    for (V& v : part) v = V{};
  }

  const double count_;  // entries of a row
  const RowWalk<T> vectors_;
  double mass_ = -1, quantile_ = 0;
  Search<T> search_;
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
