// Any panel: moments, first guess, then a sweep per step of the search in newton.h for all vectors of the panel
// together until the last has settled. What has not after kMaxEvaluations steps is sorted.
#pragma once

#include <memory>

#include "cpu/projection/lane_thresholds.h"
#include "cpu/projection/panel.h"
#include "cpu/projection/solvers/bracket.h"
#include "cpu/projection/solvers/sorted.h"
#include "cpu/simd/aligned.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// `entries(step, steps, buffer)` gives a block of x as a View; entries that take no part are -inf in it.
template <class T, class Entries>
class General {  // large: to be had as Scratch
 public:
  General(const Panel& panel, int threads, const Entries& entries)
      : panel_(panel), plan_(panel.plan), threads_(threads), source_(entries), columns_(plan_.columns) {
    const int64_t full = plan_.full_steps;
    if (plan_.steps > plan_.block_steps || full == 0) return;
    const View<const T> all = source_(0, full, buffer_);
    if (all.at == buffer_ && full < plan_.steps) source_(full, 1, buffer_ + full * plan_.width);
    if (all.at == buffer_ || full == plan_.steps) kept_ = all;
  }

  // Block of x. The step that is not full is copied when it is first asked for: by then its entries are in the cache.
  View<const T> entries(int64_t step, int64_t steps, T* buffer) {
    if (kept_.at) return {kept_.at + step * kept_.stride, kept_.stride};
    if (step < plan_.full_steps) return source_(step, steps, buffer);
    if (!last_) last_ = source_(step, 1, last_buffer_).at;
    return {last_, plan_.width};
  }

  // Leaves p and d of every live column there, but for those that `solved`, if given, says have been found.
  void solve(const PerVector& k, const PerVector& tau, double* p, double* d, const bool* solved = nullptr) {
    start(k, tau, p, d, solved);
    if (!cpu::is_wanted(cpu::Solver::kSorted, false)) search(p, d);
    if (searching_ + huge_ > 0) finish_exactly(p, d);
    if (gaps_ > 0) centre_gaps(p, d);
  }

  // Where all entries lie in one block, as a whole; else null.
  const View<const T>& kept() const { return kept_; }

  // Columns that lie near each other, where they can be read in place.
  void keep_in_place() {
    if (kept_.at || plan_.full_steps < plan_.steps || !plan_.side_by_side()) return;
    const View<const T> head = source_(0, 1, buffer_);
    if (head.at != buffer_ && plan_.steps * head.stride <= kNear) kept_ = source_(0, plan_.steps, buffer_);
  }

  // Entries that no sweep can read in place, or only with a jump from row to row, are copied once, if they are few.
  void keep() {
    if (kept_.at || plan_.steps * plan_.width > kMaxKept) return;
    const View<const T> head = source_(0, 1, buffer_);
    if (head.stride == plan_.width && (head.at != buffer_ || columns_ == 1)) return;
    own_ = Aligned<T>(plan_.steps * plan_.width);
    for_each_chunk(plan_, threads_, [&](int64_t step, int64_t steps) {
      T* to = own_ + step * plan_.width;
      View<const T> from = source_(step, steps, to);
      if (from.at == to) return;
      for (int64_t s = 0; s < steps; ++s)
        for (int l = 0; l < panel_.lanes(); l += kGroup)
          memcpy(to + s * plan_.width + l, from.at + s * from.stride + l, kGroup * sizeof(T));
    });
    kept_ = {own_, plan_.width};
  }

  // Lanes for the projection: the search is over.
  Lanes<T>& lanes() { return lanes_; }

  // The roots between the brackets' ends, of vectors that have `others`, which these decide, beside the counts[c]
  // entries at hand, -1 for a column that is left. Sets p, d and `solved` of those that are there and easy to find;
  // true where that is all of them.
  bool solve_between(const Bracket<T>* brackets, const Decided* others, const int64_t* counts, const PerVector& k,
                     const PerVector& tau, double* p, double* d, bool* solved) {
    others_ = others;
    brackets_ = brackets;
    const ScratchArray<Sweep> at_lo(panel_.live), at_hi(panel_.live);
    auto evaluate_all = [&](const auto& threshold, Sweep* at_threshold) {
      const LaneSums& sums = count([&](int c) { return counts[c] >= 0 ? threshold(c) : Pair{HUGE_VAL, 0}; }, tau);
      for (int c = 0; c < panel_.live; ++c)
        if (counts[c] >= 0) at_threshold[c] = result(sums, c);
    };
    evaluate_all([&](int c) { return brackets[c].lo; }, at_lo);
    evaluate_all([&](int c) { return brackets[c].hi; }, at_hi);
    for (int c = 0; c < columns_; ++c) {
      searching_at_[c] = false;
      search_[c].status = SearchStatus::kFound;
      thresholds_.set(c, {HUGE_VAL, 0});
      if (c >= panel_.live || counts[c] < 0) continue;
      const bool numbers = at_lo[c].g == others[c].ones + others[c].active + double(counts[c]);
      searching_at_[c] = numbers && search_[c].start_between(at(k, panel_.vector(c)), at(tau, panel_.vector(c)),
                                                             brackets[c].lo, brackets[c].hi, at_lo[c], at_hi[c]);
      searching_ += searching_at_[c];
      solved[c] = searching_at_[c];
      if (searching_at_[c]) thresholds_.set(c, search_[c].t);
    }
    search(p, d);
    if (gaps_ > 0) centre_gaps(p, d);
    bool all = true;
    for (int c = 0; c < panel_.live; ++c) all &= solved[c] = solved[c] && !searching_at_[c];
    return all;
  }

  // ---- single sweeps, of what csrc/cpu/projection/shards.cpp adds up over processes ----

  // Of a column's entries: numbers of those that are finite, +inf and nan; of the finite ones the sums of x - shift and
  // of its square, and the extremes.
  struct Moments {
    double count, infinite, nan, shift, sum, squares;
    T low, high;
  };
  void measure() {
    alignas(64) T first[kMaxLanes];
    View<const T> head = entries(0, 1, first);
    for (int c = 0; c < columns_; ++c) shift_[c] = c < panel_.live && is_finite(head.at[c]) ? head.at[c] : T(0);
    repeat(shift_, plan_.width, columns_);
    // A second turn, which leaves out what is not finite, is taken only where the first one's sums are not finite.
    for (bool checked : {false, true}) {
      sweep_entries(totals_, [&](const T* x, int64_t steps, int64_t stride, LaneMoments<T>& out, bool full) {
        if (full && !checked)
          sweep_moments<false>(x, steps, stride, panel_.lanes(), shift_, out);
        else
          sweep_moments<true>(x, steps, stride, panel_.lanes(), shift_, out);
      });
      bool finite = true;
      for (int c = 0; c < panel_.live; ++c) finite &= is_finite(totals_.sums.b[c]);
      if (finite) break;
    }
    all_finite_ = true;
    for (int c = 0; c < panel_.live; ++c) all_finite_ &= totals_.sums.a[c] == double(plan_.n);
    if (all_finite_) return;
    sweep_entries(special_, [&](const T* x, int64_t steps, int64_t stride, LaneSums& out, bool) {
      sweep_special(x, steps, stride, panel_.lanes(), out);
    });
  }
  Moments moments(int c) const {
    const LaneSums& sums = totals_.sums;
    const double swept = double(plan_.steps * plan_.entries_per_step());  // the padding's entries among them
    const double infinite = all_finite_ ? 0 : special_.a[c], nan = all_finite_ ? 0 : swept - special_.b[c];
    return {
        sums.a[c], infinite, nan, double(shift_[c]), sums.b[c], sums.c[c], totals_.range.low[c], totals_.range.high[c]};
  }
  // #{x > t}, #{x >= t + tau} and the sum over A of x - p, for all columns: threshold(c) is t, with an infinite p for a
  // column that is not looked at.
  template <class Threshold>
  const LaneSums& count(const Threshold& threshold, const PerVector& tau) {
    for (int c = 0; c < columns_; ++c) {
      thresholds_.set(c, c < panel_.live ? threshold(c) : Pair{HUGE_VAL, 0});
      thresholds_.tau[c] = c < panel_.live ? at(tau, panel_.vector(c)) : 1;
    }
    set_lanes(lanes_, thresholds_, plan_.width, columns_);
    sweep_thresholds(totals_.sums);
    return totals_.sums;
  }
  // The greatest entry at or below an edge and the least one above it, for all columns; `edges` is overwritten.
  const LaneRange<T>& beside(T* edges) {
    sweep_edges(edges, totals_.range);
    return totals_.range;
  }

  double mass_above(Pair t, double tau) {
    const Sweep at = evaluate(t, tau);
    return at.h + (at.S - (at.g - at.h) * t.d) / tau;
  }

 private:
  template <class Accumulator, class Body>
  void sweep_entries(Accumulator& total, const Body& body) {
    sweep(plan_, threads_, total, [&](int64_t step, int64_t steps, Accumulator& out) {
      const ScratchArray<T> buffer(kept_.at ? 0 : kBlock);
      View<const T> x = entries(step, steps, buffer);
      body(x.at, steps, x.stride, out, step < plan_.full_steps);
    });
  }
  void sweep_thresholds(LaneSums& total) {
    sweep_entries(total, [&](const T* x, int64_t steps, int64_t stride, LaneSums& out, bool) {
      sweep_counts(x, steps, stride, panel_.lanes(), lanes_, out);
    });
  }

  // Moments, special rows, first guess.
  void start(const PerVector& k, const PerVector& tau, double* p, double* d, const bool* solved) {
    measure();
    double last_q = -1, z = 0;
    for (int c = 0; c < columns_; ++c) {
      searching_at_[c] = huge_at_[c] = false;
      search_[c].status = SearchStatus::kFound;
      thresholds_.set(c, {HUGE_VAL, 0});
      thresholds_.tau[c] = 1;
      if (c >= panel_.live || (solved && solved[c])) continue;
      int64_t v = panel_.vector(c);
      double mass = at(k, v), temperature = at(tau, v);
      const Moments of = moments(c);
      p[c] = d[c] = 0;
      bool valid = mass >= 0 && mass <= double(plan_.n) && is_temperature(temperature);
      if (!valid || of.nan > 0) {
        p[c] = NAN;
      } else if (of.infinite >= mass) {
        p[c] = HUGE_VAL;
        d[c] = mass > 0 ? mass / of.infinite : 0;
      } else if (mass >= of.infinite + of.count) {
        p[c] = -HUGE_VAL;
      } else {
        double q = (mass - of.infinite) / of.count;
        if (q != last_q) z = normal_quantile(1 - q);
        last_q = q;
        double mean = of.sum / of.count, variance = of.squares / of.count - mean * mean;
        search_[c].start(mass, temperature, of.count, of.infinite, of.low, of.high, of.shift + mean,
                         variance > 0 ? variance : 0, z);
        thresholds_.tau[c] = temperature;
        huge_at_[c] = temperature >= kMostTau<T>;
        huge_ += huge_at_[c];
        if (huge_at_[c]) continue;
        searching_at_[c] = true;
        ++searching_;
        thresholds_.set(c, search_[c].t);
      }
    }
  }

  // Before each turn thresholds_ holds the next threshold of every vector that still searches. Those that
  // kMaxEvaluations turns do not settle are left to finish_exactly().
  void search(double* p, double* d) {
    for (int evaluations = 0; searching_ > 0 && evaluations < kMaxEvaluations; ++evaluations) step(p, d);
  }

  // Column c's counts and sum at its threshold.
  Sweep result(const LaneSums& sums, int c) const {
    Sweep at{sums.a[c], sums.b[c], sums.c[c]};
    if (others_) {
      const Decided& others = others_[c];
      at.g += others.ones + others.active;
      at.h += others.ones;
      at.S += others.sum + others.active * (brackets_[c].lo.p - thresholds_.p[c]);
    }
    return at;
  }

  // One vector's counts and sum at t.
  Sweep evaluate(Pair t, double tau) {
    thresholds_.set(0, t);
    thresholds_.tau[0] = tau;
    set_lanes(lanes_, thresholds_, plan_.width, columns_);
    sweep_thresholds(totals_.sums);
    return result(totals_.sums, 0);
  }

  void step(double* p, double* d) {
    set_lanes(lanes_, thresholds_, plan_.width, columns_);
    sweep_thresholds(totals_.sums);
    bool flat = false;
    for (int c = 0; c < columns_; ++c) {
      if (!searching_at_[c]) continue;
      Search<T>& search = search_[c];
      search.step(result(totals_.sums, c));
      thresholds_.set(c, search.t);
      flat |= search.flat != 0;
      if (search.status != SearchStatus::kSearching) settle(c, p, d);
    }
    if (flat) jump();
  }

  // Lets the vectors whose search has met a flat piece of f leave it.
  void jump() {
    alignas(64) T floor[kMaxLanes];
    for (int c = 0; c < columns_; ++c) {
      const Search<T>& search = search_[c];
      bool leaves = searching_at_[c] && search.flat != 0;
      floor[c] = leaves ? active_floor<T>(search.flat < 0 ? search.hi : search.lo) : T(0);
    }
    sweep_edges(floor, totals_.range);
    for (int c = 0; c < columns_; ++c) {
      Search<T>& search = search_[c];
      if (!searching_at_[c] || search.flat == 0) continue;
      search.jump(totals_.range.high[c], totals_.range.low[c]);
      thresholds_.set(c, search.t);
    }
  }

  // The greatest entry at or below floor and the least above it.
  void sweep_edges(T* floor, LaneRange<T>& range) {
    repeat(floor, plan_.width, columns_);
    sweep_entries(range, [&](const T* x, int64_t steps, int64_t stride, LaneRange<T>& out, bool) {
      sweep_gap(x, steps, stride, panel_.lanes(), floor, out);
    });
  }

  void settle(int c, double* p, double* d) {
    searching_ -= searching_at_[c];
    searching_at_[c] = false;
    gaps_ += search_[c].status != SearchStatus::kFound;
    p[c] = search_[c].t.p;
    d[c] = search_[c].t.d;
  }

  void finish_exactly(double* p, double* d) {
    cpu::note(cpu::Solver::kSorted);
    std::unique_ptr<T[]> list(new T[plan_.n]);
    for (int c = 0; c < columns_; ++c) {
      if (!searching_at_[c] && !huge_at_[c]) continue;
      int64_t count = 0;
      double infinite = 0;
      for (int64_t chunk = 0; chunk < plan_.chunks; ++chunk) {
        for_each_block(plan_, chunk, [&](int64_t s, int64_t steps) {
          const ScratchArray<T> buffer(kBlock);
          View<const T> x = entries(s, steps, buffer);
          for (int64_t i = 0; i < steps; ++i) {
            for (int l = c; l < plan_.width; l += columns_) {
              T v = x.at[i * x.stride + l];
              if (is_finite(v)) list[count++] = v;
              infinite += v == T(HUGE_VAL);
            }
          }
        });
      }
      search_[c].t = cpu::exact_root(list.get(), count, search_[c].k - infinite, search_[c].tau);
      search_[c].status = SearchStatus::kFound;
      settle(c, p, d);
    }
  }

  // No entry is active: t goes to the middle of the thresholds that all give this y.
  void centre_gaps(double* p, double* d) {
    set_lanes(lanes_, thresholds_, plan_.width, columns_);
    for (int c = 0; c < columns_; ++c)
      if (c < panel_.live && search_[c].status == SearchStatus::kGapBelow)
        lanes_.floor[c] = from_ordered<T>(to_ordered(lanes_.ceiling[c]) - 1);
    sweep_edges(lanes_.floor, totals_.range);
    for (int c = 0; c < panel_.live; ++c) {
      if (search_[c].status != SearchStatus::kGapBelow && search_[c].status != SearchStatus::kGapAbove) continue;
      Pair t = gap_middle<T>(totals_.range.high[c], totals_.range.low[c], search_[c].tau);
      p[c] = t.p;
      d[c] = t.d;
    }
  }

  const Panel& panel_;
  const Plan& plan_;
  const int threads_;
  const Entries& source_;
  const int columns_;
  Aligned<T> own_;
  View<const T> kept_{nullptr, 0};
  const T* last_ = nullptr;  // the step that is not full
  alignas(64) T buffer_[kBlock], last_buffer_[kMaxLanes], shift_[kMaxLanes];
  LaneThresholds thresholds_;
  Lanes<T> lanes_;
  LaneMoments<T> totals_;  // of the last sweep
  LaneSums special_;       // a = #{+inf}, b = #{not nan}, unless
  bool all_finite_;
  Search<T> search_[kMaxLanes];
  bool searching_at_[kMaxLanes], huge_at_[kMaxLanes];  // huge: sums in T would overflow
  int searching_ = 0, huge_ = 0, gaps_ = 0;
  const Decided* others_ = nullptr;  // beside the entries at hand, by column
  const Bracket<T>* brackets_ = nullptr;
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
