// Long columns of a matrix: a sample of rows tells between which thresholds the roots lie, one pass over the matrix
// lists the few entries that these leave undecided. long_vectors.h does the same for a vector by itself.
#pragma once

#include <memory>

#include "cpu/projection/solvers/bracket.h"
#include "cpu/projection/solvers/general.h"
#include "cpu/projection/solvers/lane_lists.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// Rows from all over a panel.
template <class T>
class RowSample {
 public:
  template <class Entries>
  RowSample(const Panel& panel, const Entries& entries)
      : size_(size_of(panel.plan.n)), width_(panel.plan.width), rows_(size_ * width_) {
    const ScratchArray<T> buffer(width_);
    for (int64_t i = 0; i < size_; ++i) {
      const int64_t step = int64_t(double(i) / double(size_) * double(panel.plan.full_steps));
      memcpy(rows_ + i * width_, entries(step, 1, buffer).at, panel.lanes() * sizeof(T));
    }
  }

  static int64_t size_of(int64_t n) {
    return smaller(2 * int64_t(cbrt(double(n) * double(n))), kMostRows) / kGroup * kGroup;
  }
  int64_t size() const { return size_; }
  View<const T> operator()(int64_t step, int64_t, T*) const { return {rows_ + step * width_, width_}; }

 private:
  const int64_t size_;
  const int width_;
  const Aligned<T> rows_;
};

template <class T, class Entries>
class PanelSolver;  // solve_panel.h: a sample is a panel too

template <class T>
class LongColumns {
 public:
  // Sets p, d and `solved` of the columns whose sample helps; true where that is all of them.
  template <class Entries>
  bool solve(const Panel& panel, int threads, const Entries& entries, const PerVector& k, const PerVector& tau,
             double* p, double* d, bool* solved) {
    const int live = panel.live;
    for (int c = 0; c < live; ++c) solved[c] = false;
    if (!bracket(panel, entries, k, tau)) return false;

    // Each thread has a part of the rows, and lists of its own; sums are added in order, whoever computed them.
    const Plan& plan = panel.plan;
    const int64_t room = smaller(plan.n / 4, kRoomForUndecided);
    const std::unique_ptr<LaneLists<T>[]> parts(new LaneLists<T>[threads]);
    const std::unique_ptr<LaneSums[]> sums(new LaneSums[plan.chunks]);
    walk_parts(plan.chunks, threads, Walk::kForwards, [&](int64_t chunk, int64_t part) {
      if (!parts[part].reserved()) parts[part].reserve(panel.lanes(), plan.width, room);
      sums[chunk].clear(plan.width);
      const ScratchArray<T> buffer(kBlock);
      for_each_block(plan, chunk, [&](int64_t step, int64_t steps) {
        const View<const T> x = entries(step, steps, buffer);
        sort_out(x, steps, panel.lanes(), sums[chunk], parts[part]);
      });
    });
    for (int64_t chunk = 1; chunk < plan.chunks; ++chunk) sums[0].merge(sums[chunk], live);
    for (int part = 1; part < threads && parts[part].reserved(); ++part) parts[0].append(parts[part]);

    const ScratchArray<Decided> decided(live);
    const ScratchArray<int64_t> counts(live);
    for (int c = 0; c < live; ++c) {
      decided[c].ones = sums[0].a[c];
      decided[c].active = sums[0].b[c];
      decided[c].sum = sums[0].c[c];
      counts[c] = usable_[c] && parts[0].count(c) <= room ? parts[0].count(c) : -1;
      if (counts[c] == 0 && brackets_[c].open()) counts[c] = -1;
      if (counts[c] > 0 && brackets_[c].open()) brackets_[c].hi = {double(greatest(parts[0].at(c), counts[c])), 0};
    }
    const Plan shorter = plan.with_length(parts[0].pad());
    const Panel rest(shorter, panel.index);
    const Scratch<General<T, LaneLists<T>>> search(rest, 1, parts[0]);
    search->keep();
    return search->solve_between(brackets_, decided, counts, k, tau, p, d, solved);
  }

 private:
  static T greatest(const T* list, int64_t count) {
    T most = list[0];
    for (int64_t i = 1; i < count; ++i) most = max(most, list[i]);
    return most;
  }

  // Where the roots lie, by those of a sample for a little more than the mass and for a little less.
  template <class Entries>
  bool bracket(const Panel& panel, const Entries& entries, const PerVector& k, const PerVector& tau) {
    const Scratch<RowSample<T>> sample(panel, entries);
    const double size = double(sample->size()), share_of = size / double(panel.plan.n);
    const int64_t first = panel.vector(0);
    const ScratchArray<double> more(first + panel.live), less(first + panel.live);
    bool some = false;
    for (int c = 0; c < panel.live; ++c) {
      const double mass = at(k, first + c), share = mass * share_of;
      usable_[c] = mass > 0 && mass < double(panel.plan.n) && regular<T>(0, 0, at(tau, first + c));
      const double slack = usable_[c] ? kDeviations * sqrt(share * (1 - share / size)) + 3 : 0;
      usable_[c] &= share + slack < size;
      some |= usable_[c];
      more[first + c] = usable_[c] ? share + slack : 1;
      less[first + c] = usable_[c] && share > slack ? share - slack : 0;
    }
    if (!some) return false;
    const Plan plan = panel.plan.with_length(sample->size());
    const Panel shorter(plan, panel.index);
    const ScratchArray<Pair> lo(panel.live), hi(panel.live);
    solve_sample(shorter, *sample, more, tau, lo);
    solve_sample(shorter, *sample, less, tau, hi);
    for (int c = 0; c < panel.live; ++c) {
      if (less[first + c] == 0) hi[c] = {lo[c].p, HUGE_VAL};  // open: an end is found when the entries are listed
      usable_[c] &= is_finite(lo[c].p) && difference(hi[c], lo[c]) > 0;
      if (usable_[c]) brackets_[c] = Bracket<T>(lo[c], hi[c], at(tau, first + c));
    }
    for (int l = 0; l < panel.lanes(); ++l) {
      const bool in_use = l < panel.live && usable_[l], closed = in_use && !brackets_[l].open();
      const T none = T(HUGE_VAL);
      floor_[l] = in_use ? brackets_[l].floor : none;
      inner_floor_[l] = closed ? brackets_[l].inner_floor : none;
      inner_ceiling_[l] = closed ? brackets_[l].inner_ceiling : none;
      under_one_[l] = closed ? from_ordered<T>(to_ordered(brackets_[l].ceiling) - 1) : none;
      p_[l] = in_use ? T(brackets_[l].lo.p) : T(0);
    }
    return true;
  }
  static void solve_sample(const Panel& panel, const RowSample<T>& sample, const double* masses, const PerVector& tau,
                           Pair* roots) {
    const ScratchArray<double> p(panel.live), d(panel.live);
    Scratch<PanelSolver<T, RowSample<T>>>(panel, 1, sample)->solve({masses, 0}, tau, p, d);
    for (int c = 0; c < panel.live; ++c) roots[c] = {p[c], d[c]};
  }

  // a = ones, b = active entries, c = their sum of x - lo.p; the rest is listed. First without branches: the vectors
  // that hold some of it, a bit per lane.
  void sort_out(const View<const T>& x, int64_t steps, int lanes, LaneSums& out, LaneLists<T>& rest) const {
    using V = Vector<T>;
    constexpr int kCount = kVectors<T>;
    struct Hit {
      const T* entries;
      int lane;
      unsigned lanes;
    } hits[kBlockRows * kCount + 1];
    for (int g = 0; g < lanes; g += kGroup) {
      V floor[kCount], inner_floor[kCount], inner_ceiling[kCount], under_one[kCount], p[kCount];
      load_group(floor_ + g, floor);
      load_group(inner_floor_ + g, inner_floor);
      load_group(inner_ceiling_ + g, inner_ceiling);
      load_group(under_one_ + g, under_one);
      load_group(p_ + g, p);
      V sum[kCount] = {}, part[kCount] = {};
      Counts<T> ones[kCount] = {}, active[kCount] = {};
      int found = 0;
      const T* row = x.at + g;
      for (int64_t s = 0; s < steps;) {
        for (const int64_t end = run_end(s, steps); s < end; ++s, row += x.stride) {
          for (int i = 0; i < kCount; ++i) {
            const T* const entries = row + i * kVectorLanes<T>;
            const V v = load_vector(entries);
            prefetch(entries, x.stride, kBlockRows);
            const Mask<T> is_active = both_greater(greater(v, inner_floor[i]), inner_ceiling[i], v),
                          is_one = greater(v, under_one[i]);
            active[i] = add_one_where(is_active, active[i]);
            ones[i] = add_one_where(is_one, ones[i]);
            part[i] = add_where(is_active, part[i], v - p[i]);
            hits[found] = {entries, g + i * kVectorLanes<T>,
                           bits(and_not(greater_or_nan(v, floor[i]), Mask<T>(is_active | is_one)))};
            found += hits[found].lanes != 0;
          }
        }
        join_vectors(part, sum);
      }
      flush_vectors(ones, out.a + g);
      flush_vectors(active, out.b + g);
      flush_vectors(sum, out.c + g);
      for (int h = 0; h < found; ++h) {
        for (unsigned left = hits[h].lanes; left != 0; left &= left - 1) {
          const int l = __builtin_ctz(left);
          rest.add(hits[h].lane + l, hits[h].entries[l]);
        }
      }
    }
  }

  Bracket<T> brackets_[kMaxLanes];
  bool usable_[kMaxLanes];
  alignas(64) T floor_[kMaxLanes], inner_floor_[kMaxLanes], inner_ceiling_[kMaxLanes],
      under_one_[kMaxLanes], p_[kMaxLanes];
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
