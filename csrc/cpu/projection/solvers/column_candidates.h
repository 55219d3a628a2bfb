// Columns of small mass: only the entries near a column's top can be active or one, a few in a hundred where n is a
// thousand times k. A sample of rows tells where the top begins; one pass over the matrix collects the entries above,
// and where they have more than mass k, the threshold lies among them: the solver then works on these few alone.
#pragma once

#include "cpu/projection/solvers/general.h"
#include "cpu/projection/solvers/lane_lists.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// The tops of a panel's columns, listed lane by lane. To be made in three steps: open(), collect() with all rows in
// turn, close(); has(c) tells which columns' tops could be had, which does not depend on the columns beside them.
template <class T>
class ColumnCandidates {
 public:
  template <class Entries>
  void open(const Panel& panel, const Entries& entries, const PerVector& k, const PerVector& tau) {
    const Plan& plan = panel.plan;
    if (!wants_column_candidates(plan)) return;
    lanes_ = panel.lanes();
    int64_t most = 0;
    for (int l = 0; l < lanes_; ++l) {
      room_[l] = 0;
      if (l >= panel.live) continue;
      const double mass = at(k, panel.vector(l));
      const bool small = mass >= 0 && mass <= kSmallColumnShare * double(plan.n);
      if (small && is_temperature(at(tau, panel.vector(l))))
        room_[l] = smaller(plan.n / 8, int64_t(kRoomForColumn * mass) + 256);
      most = larger(most, room_[l]);
    }
    if (most == 0) return;
    cpu::note(cpu::Solver::kColumnCandidates);
    bound(panel, entries, k, tau);
    lists_.reserve(lanes_, plan.width, most);
    steps_ = Aligned<int32_t>(lists_.size());
  }
  bool is_open() const { return lists_.reserved(); }

  // Every entry of these rows above its column's floor, and every NaN.
  template <class Entries>
  void collect(const Entries& entries, int64_t step, int64_t steps) {
    if (!is_open()) return;
    const ScratchArray<T> buffer(kBlock);
    collect(entries(step, steps, buffer), step, steps);
  }

  void close(const Panel& panel, const PerVector& k, const PerVector& tau) {
    for (int c = 0; c < panel.live; ++c) {
      has_[c] = is_open() && room_[c] > 0 && enough(c, at(k, panel.vector(c)), at(tau, panel.vector(c)));
      columns_ += has_[c];
    }
    if (columns_ == 0) return;
    for (int l = 0; l < lanes_; ++l)
      if (l >= panel.live || !has_[l]) lists_.drop(l);
    length_ = lists_.pad();
  }

  int columns() const { return columns_; }  // whose tops could be had
  bool has(int column) const { return has_[column]; }
  // Calls body(j, x_j) for the entries of column c that are among the tops; the others are zero in y.
  template <class Body>
  void for_each(int c, const Body& body) const {
    for (int64_t i = 0; i < lists_.count(c); ++i) body(steps_[lists_.first(c) + i], lists_.at(c)[i]);
  }
  // As vectors of their own, of one length.
  const LaneLists<T>& lists() const { return lists_; }
  int64_t length() const { return length_; }

 private:
  // Where the tops begin: the threshold of several times the mass, by the moments of a sample.
  template <class Entries>
  void bound(const Panel& panel, const Entries& entries, const PerVector& k, const PerVector& tau) {
    const Plan& plan = panel.plan;
    alignas(64) T buffer[kMaxLanes], origin[kMaxLanes], sum[kMaxLanes] = {}, squares[kMaxLanes] = {};
    for (int64_t i = 0; i < kColumnSample; ++i) {
      const T* row = entries(i * (plan.n / kColumnSample), 1, buffer).at;
      for (int l = 0; i == 0 && l < lanes_; ++l) origin[l] = is_finite(row[l]) ? row[l] : T(0);
#pragma omp simd
      for (int l = 0; l < lanes_; ++l) {
        bool finite = (row[l] <= kLargest<T>)&(row[l] >= -kLargest<T>);
        T e = masked(finite, row[l] - origin[l]);
        sum[l] += e;
        squares[l] += e * e;
      }
    }
    double last_q = -1, z = 0;
    for (int l = 0; l < lanes_; ++l) {
      floor_[l] = T(HUGE_VAL);
      if (room_[l] == 0) continue;
      double q = (4 * at(k, panel.vector(l)) + 8) / double(plan.n);
      if (q != last_q) z = normal_quantile(1 - q);
      last_q = q;
      double mean = sum[l] / kColumnSample, variance = squares[l] / kColumnSample - mean * mean;
      floor_[l] = T(double(origin[l]) + moment_guess(mean, variance > 0 ? variance : 0, at(tau, panel.vector(l)), z));
      if (!is_finite(floor_[l])) leave(l);
    }
  }

  void leave(int lane) {
    room_[lane] = 0;
    floor_[lane] = T(HUGE_VAL);
  }

  // First the groups of lanes with such entries are found, a bit per lane and without branches: hits[found] is
  // overwritten until it is one. Then come the entries themselves. A column with more of them than there is room for is
  // left.
  void collect(const View<const T>& x, int64_t step, int64_t steps) {
    struct Hit {
      const T* row;
      int64_t step;
      int group;
      unsigned lanes;
    } hits[kBlock / kGroup + 1];
    int found = 0;
    for (int64_t s = 0; s < steps; ++s) {
      for (int g = 0; g < lanes_; g += kGroup) {
        const T *row = x.at + s * x.stride + g, *floor = floor_ + g;
        prefetch(row, x.stride);
        const unsigned lanes = bits_greater_or_nan<kGroup>(row, floor);
        hits[found] = {row, step + s, g, lanes};
        found += lanes != 0;
      }
    }
    for (int i = 0; i < found; ++i) {
      for (unsigned lanes = hits[i].lanes; lanes != 0; lanes &= lanes - 1) {
        const int l = __builtin_ctz(lanes), lane = hits[i].group + l;
        if (lists_.count(lane) >= room_[lane]) {
          leave(lane);
          continue;
        }
        steps_[lists_.first(lane) + lists_.count(lane)] = int32_t(hits[i].step);
        lists_.add(lane, hits[i].row[l]);
      }
    }
  }

  // Whether a column has more than mass k above its floor, and so more than k entries.
  bool enough(int c, double mass, double tau) const {
    const double rate = 1 / tau;
    double total = 0;
    for (int64_t i = 0; i < lists_.count(c) && !(total > mass); ++i)
      total += clip01((double(lists_.at(c)[i]) - double(floor_[c])) * rate);
    return total > mass;
  }

  LaneLists<T> lists_;
  Aligned<int32_t> steps_;  // of what is listed
  int64_t length_ = 0;
  int lanes_ = 0, columns_ = 0;
  bool has_[kMaxLanes];
  int64_t room_[kMaxLanes];  // 0 where a column is left
  alignas(64) T floor_[kMaxLanes];
};

// The thresholds of the columns that have candidates.
template <class T>
static void solve_candidates(const Panel& panel, const ColumnCandidates<T>& candidates, const PerVector& k,
                             const PerVector& tau, double* p, double* d) {
  const Plan plan = panel.plan.with_length(candidates.length());
  const Panel shorter(plan, panel.index);
  bool left[kMaxLanes];
  for (int c = 0; c < panel.live; ++c) left[c] = !candidates.has(c);
  const Scratch<General<T, LaneLists<T>>> search(shorter, 1, candidates.lists());
  search->keep();
  search->solve(k, tau, p, d, left);
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
