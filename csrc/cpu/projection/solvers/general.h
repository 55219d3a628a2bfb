// Finds the thresholds of a panel's vectors: moments, first guess, then a sweep per step of the search in newton.h for
// all vectors of the panel together until the last has settled.
#pragma once

#include <memory>

#include "cpu/projection/lane_thresholds.h"
#include "cpu/projection/panel.h"
#include "cpu/projection/solvers/column_candidates.h"
#include "cpu/projection/solvers/long_vectors.h"
#include "cpu/projection/solvers/short_vectors.h"
#include "cpu/projection/solvers/sorted.h"
#include "cpu/simd/aligned.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// `entries(step, steps, buffer)` gives a block of x as a View; entries that take no part are -inf in it.
template <class T, class Entries>
class PanelSolver {  // large: to be had as Scratch
 public:
  PanelSolver(const Panel& panel, int threads, const Entries& entries)
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

  // Leaves p and d of every live column in `state`, starting there at the panel's first vector.
  void solve(const PerVector& k, const PerVector& tau, double* p, double* d) {
    solve(k, tau, p, d, [](int64_t, int64_t) {});
  }
  // Where tops() are found, visit(step, steps) has seen every block, in a sweep that had to be.
  template <class Visit>
  void solve(const PerVector& k, const PerVector& tau, double* p, double* d, const Visit& visit) {
    keep();
    if (solve_short(k, tau, p, d) || solve_sampled(k, tau, p, d, visit)) return;
    start(k, tau, p, d);
    search(p, d);
    if (searching_ + huge_ > 0) finish_exactly(p, d);
    if (gaps_ > 0) centre_gaps(p, d);
  }

  // Lanes for the projection: the search is over.
  Lanes<T>& lanes() { return lanes_; }

  // All entries of a long vector that are not zero and some more, where they are few; or null.
  const Undecided<T>* tops() const { return tops_ ? &undecided_ : nullptr; }

  // The root between the bracket's ends, of a vector that has `others` beside the entries at hand; false where it is
  // not there, or hard to find.
  bool solve_between(const Bracket<T>& bracket, const Undecided<T>& others, double k, double tau, double* p,
                     double* d) {
    others_ = &others;
    origin_ = bracket.lo.p;
    const Sweep at_lo = evaluate(bracket.lo, tau), at_hi = evaluate(bracket.hi, tau);
    const bool numbers = at_lo.g == others.decided.ones + others.decided.active + double(others.count());
    if (!numbers || !search_[0].start_between(k, tau, bracket.lo, bracket.hi, at_lo, at_hi)) return false;
    thresholds_.set(0, search_[0].t);
    searching_at_[0] = true;
    searching_ = 1;
    search(p, d);
    if (gaps_ > 0) centre_gaps(p, d);
    return searching_ == 0;
  }
  double mass_above(Pair t, double tau) {
    const Sweep at = evaluate(t, tau);
    return at.h + (at.S - (at.g - at.h) * t.d) / tau;
  }

 private:
  static constexpr int kMaxEvaluations = 48;
  static constexpr int64_t kMaxKept = int64_t(1) << 21;
  static constexpr int64_t kTops = 1 << 14, kSampled = 1 << 17;  // where a sample pays: for tops, and for any mass
  static constexpr double kDeviations = 3;                       // of a sample's share of the mass, rarely exceeded

  // Entries that no sweep can read in place, or only with a jump from row to row, are copied once, if they are few.
  void keep() {
    if (kept_.at || plan_.steps * plan_.width > kMaxKept || source_(0, 1, buffer_).stride == plan_.width) return;
    own_ = Aligned<T>(plan_.steps * plan_.width);
    for_each_chunk(plan_, threads_, [&](int64_t step, int64_t steps) {
      T* to = own_ + step * plan_.width;
      View<const T> from = source_(step, steps, to);
      for (int64_t s = 0; from.at != to && s < steps; ++s)
        memcpy(to + s * plan_.width, from.at + s * from.stride, plan_.width * sizeof(T));
    });
    kept_ = {own_, plan_.width};
  }

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
      sweep_counts(x, steps, stride, plan_.width, lanes_, out);
    });
  }

  // Short vectors side by side; false where some lanes are left to the general search.
  bool solve_short(const PerVector& k, const PerVector& tau, double* p, double* d) {
    memset(solved_, 0, columns_);
    if (columns_ != plan_.width || plan_.n > kShort || !kept_.at) return false;
    bool all = true;
    for (int first = 0; first < panel_.live;) all &= solve_groups<4>(first, k, tau, p, d);
    return all;
  }

  // The lanes from `first` on, kGroups groups of them or as many as there are, and moves `first` behind them. Not
  // inlined, so that its frame does not add to those of what comes after.
  template <int kGroups>
  __attribute__((noinline)) bool solve_groups(int& first, const PerVector& k, const PerVector& tau, double* p,
                                              double* d) {
    if constexpr (kGroups > 1) {
      if (plan_.width - first < kGroups * kGroup) return solve_groups<kGroups / 2>(first, k, tau, p, d);
    }
    constexpr int kLanes = kGroups * kGroup;
    alignas(64) double mass[kLanes], temperature[kLanes], quantile[kLanes], root_p[kLanes], root_d[kLanes];
    const int live = int(smaller(kLanes, panel_.live - first)), given = k.values || tau.values ? live : 1;
    for (int l = 0; l < given; ++l) {
      const int64_t v = panel_.vector(first + l);
      temperature[l] = at(tau, v);
      mass[l] = regular<T>(0, 0, temperature[l]) ? at(k, v) : 0;
      if (!(mass[l] >= 0 && mass[l] <= double(plan_.n))) mass[l] = 0;  // not for this search
      if (mass[l] != last_mass_) last_quantile_ = normal_quantile(1 - mass[l] / double(plan_.n));
      last_mass_ = mass[l];
      quantile[l] = last_quantile_;
    }
    for (int l = given; l < kLanes; ++l) {  // all alike, or padding, which holds no finite entry
      mass[l] = mass[0];
      temperature[l] = temperature[0];
      quantile[l] = quantile[0];
    }
    ShortSearch<T, kGroups>().solve(kept_.at + first, kept_.stride, plan_.n, mass, temperature, quantile, root_p,
                                    root_d, solved_ + first);
    memcpy(p + first, root_p, live * sizeof(double));
    memcpy(d + first, root_d, live * sizeof(double));
    const bool all = memchr(solved_ + first, false, live) == nullptr;
    first += kLanes;
    return all;
  }

  // Long vectors: false where a sample does not help.
  template <class Visit>
  bool solve_sampled(const PerVector& k, const PerVector& tau, double* p, double* d, const Visit& visit) {
    if (columns_ != 1 || plan_.n < kTops) return false;
    const double mass = at(k, panel_.vector(0)), temperature = at(tau, panel_.vector(0));
    if (!(mass > 0 && mass < double(plan_.n) && regular<T>(0, 0, temperature))) return false;
    const double size = double(Sample<T>::size_of(plan_.n)), share = size * (mass / double(plan_.n));
    const double slack = kDeviations * sqrt(share * (1 - share / size)) + 3;
    const bool tops = share <= slack;
    if (!(tops || plan_.n >= kSampled) || share + slack >= size) return false;
    auto read = [&](int64_t step, int64_t steps, T* buffer) { return entries(step, steps, buffer); };
    const Sample<T> sample(plan_, read);
    const Pair lo = sampled_root(sample, share + slack, temperature);
    const Pair hi = tops ? Pair{lo.p, HUGE_VAL} : sampled_root(sample, share - slack, temperature);
    if (!(lo.p - lo.p == 0 && difference(hi, lo) > 0)) return false;

    const Bracket<T> bracket(lo, hi, temperature);
    const int64_t undecided = sample.undecided(bracket);
    if (8 * undecided > sample.size()) return false;
    auto told = [&](int64_t step, int64_t steps) {
      if (tops) visit(step, steps);
    };
    const int64_t expected = int64_t(1.25 / size * double(undecided) * double(plan_.n));
    if (!undecided_.take(plan_, threads_, bracket, expected, plan_.n / 8, read, told)) return false;
    undecided_.pad();
    const Plan plan = plan_.with_length(undecided_.length());
    const Panel panel(plan, panel_.index);
    const Scratch<PanelSolver<T, Undecided<T>>> rest(panel, 1, undecided_);
    if (!tops) return rest->solve_between(bracket, undecided_, mass, temperature, p, d);
    tops_ = rest->mass_above(lo, temperature) > mass;
    if (tops_) rest->solve(k, tau, p, d);
    return tops_;
  }

  // The threshold at which the sample has this mass.
  Pair sampled_root(const Sample<T>& sample, double mass, double tau) const {
    const Plan plan = plan_.with_length(sample.size());
    const Panel panel(plan, panel_.index);
    Pair t;
    Scratch<PanelSolver<T, Sample<T>>>(panel, 1, sample)->solve({nullptr, mass}, {nullptr, tau}, &t.p, &t.d);
    return t;
  }

  // Moments, special rows, first guess.
  void start(const PerVector& k, const PerVector& tau, double* p, double* d) {
    alignas(64) T shift[kMaxLanes], first[kMaxLanes];
    View<const T> head = entries(0, 1, first);
    for (int c = 0; c < columns_; ++c) shift[c] = head.at[c] - head.at[c] == 0 ? head.at[c] : T(0);
    repeat(shift, plan_.width, columns_);
    LaneMoments<T>& moments = totals_;
    bool all_finite = true;
    for (bool checked : {false, true}) {
      sweep_entries(moments, [&](const T* x, int64_t steps, int64_t stride, LaneMoments<T>& out, bool full) {
        if (full && !checked)
          sweep_moments<false>(x, steps, stride, plan_.width, shift, out);
        else
          sweep_moments<true>(x, steps, stride, plan_.width, shift, out);
      });
      bool finite = true;
      for (int c = 0; c < panel_.live; ++c) finite &= moments.sums.b[c] - moments.sums.b[c] == 0;
      if (finite) break;
    }
    for (int c = 0; c < panel_.live; ++c) all_finite &= moments.sums.a[c] == double(plan_.n);
    const ScratchArray<LaneSums> special(
        all_finite ? 0 : 1);  // a = #{+inf}, b = #{not nan}, the padding's entries among them
    if (!all_finite)
      sweep_entries(*special, [&](const T* x, int64_t steps, int64_t stride, LaneSums& out, bool) {
        sweep_special(x, steps, stride, plan_.width, out);
      });
    double entries_swept = double(plan_.steps * plan_.entries_per_step());
    double last_q = -1, z = 0;
    for (int c = 0; c < columns_; ++c) {
      searching_at_[c] = huge_at_[c] = false;
      search_[c].status = SearchStatus::kFound;
      thresholds_.set(c, {HUGE_VAL, 0});
      thresholds_.tau[c] = 1;
      if (c >= panel_.live || solved_[c]) continue;
      int64_t v = panel_.vector(c);
      double mass = at(k, v), temperature = at(tau, v), count = moments.sums.a[c];
      double infinite = all_finite ? 0 : special[0].a[c];
      p[c] = d[c] = 0;
      bool valid = mass >= 0 && mass <= double(plan_.n) && is_temperature(temperature);
      if (!valid || (!all_finite && special[0].b[c] < entries_swept)) {
        p[c] = NAN;
      } else if (infinite >= mass) {
        p[c] = HUGE_VAL;
        d[c] = mass > 0 ? mass / infinite : 0;
      } else if (mass >= infinite + count) {
        p[c] = -HUGE_VAL;
      } else {
        double q = (mass - infinite) / count;
        if (q != last_q) z = normal_quantile(1 - q);
        last_q = q;
        double mean = moments.sums.b[c] / count, variance = moments.sums.c[c] / count - mean * mean;
        search_[c].start(mass, temperature, count, infinite, moments.range.low[c], moments.range.high[c],
                         double(shift[c]) + mean, variance > 0 ? variance : 0, z);
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

  void search(double* p, double* d) {
    for (int evaluations = 0; searching_ > 0 && evaluations < kMaxEvaluations; ++evaluations) step(p, d);
  }

  // Column c's counts and sum at its threshold.
  Sweep result(const LaneSums& sums, int c) const {
    Sweep at{sums.a[c], sums.b[c], sums.c[c]};
    if (others_) {
      at.g += others_->decided.ones + others_->decided.active;
      at.h += others_->decided.ones;
      at.S += others_->decided.sum + others_->decided.active * (origin_ - thresholds_.p[c]);
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
      sweep_gap(x, steps, stride, plan_.width, floor, out);
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
              if (v - v == 0) list[count++] = v;
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
  alignas(64) T buffer_[kBlock], last_buffer_[kMaxLanes];
  Thresholds thresholds_;
  Lanes<T> lanes_;
  LaneMoments<T> totals_;  // of the last sweep
  Search<T> search_[kMaxLanes];
  bool searching_at_[kMaxLanes], solved_[kMaxLanes], huge_at_[kMaxLanes];  // huge: sums in T would overflow
  int searching_ = 0, huge_ = 0, gaps_ = 0;
  Undecided<T> undecided_;                // of a long vector
  bool tops_ = false;                     // it holds all entries that are not zero
  const Undecided<T>* others_ = nullptr;  // the entries at hand are its list; its sums tell of the vector's others
  double origin_ = 0;                     // of those sums
  double last_mass_ = -1, last_quantile_ = 0;
};

// The panel's thresholds from the tops of its columns.
template <class T>
static void solve_tail(const Panel& panel, const Tail<T>& tail, const PerVector& k, const PerVector& tau, double* p,
                       double* d) {
  const Plan plan = panel.plan.with_length(tail.length());
  const Panel tops(plan, panel.index);
  Scratch<PanelSolver<T, Tail<T>>>(tops, 1, tail)->solve(k, tau, p, d);
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
