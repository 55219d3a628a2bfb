// The search for the thresholds of classes whose samples are spread over processes: the steps that every process takes
// on the same totals, class by class. The CPU and the CUDA side share them; they differ in how they loop over classes.
#pragma once

#include "loss_state.h"

namespace hypersimplex {

// How many thresholds of a class are tried at a time, where sweeps cost less than exchanges: the search's own, and some
// on each side of it.
constexpr int kShardSides = 4, kShardThresholds = 1 + 2 * kShardSides;

// Rows of sums, [rows, C]: first those that are added over the processes, then those of which the greatest is taken.
//     kMoments: entries, taking part, sum of targets, sum of sample weights; of the finite logits number, sum, sum of
//               squares; numbers of +inf and nan. Greatest: -x, x; k, -k, tau, -tau as given, which are to agree
//     kCounts:  g, h, S of newton.h, at each of the thresholds that are tried at a time
//     kEdges:   greatest: zero, -one, the entries beside the gap
//     kLoss:    |A|; sum_A s r (squared) or sum_A s (Fenchel-Young); loss relative to the threshold; sum s r
struct ShardRows {
  int added, greatest;
};
constexpr ShardRows shard_rows(ShardStage stage) {
  return stage == ShardStage::kMoments  ? ShardRows{9, 6}
         : stage == ShardStage::kCounts ? ShardRows{3 * kShardThresholds, 0}
         : stage == ShardStage::kEdges  ? ShardRows{0, 2}
                                        : ShardRows{4, 0};
}

// What a process keeps of a class from stage to stage.
template <class T>
struct ShardSearch {
  Search<T> search;
  Pair thresholds[kShardThresholds];  // to be tried next, `tried` of them
  int32_t tried, several;             // several: whether there are to be more than one
  double weight, loss;                // sum of sample weights; the class's loss
  int32_t some_ignored;               // in this shard
  int32_t cancelled;                  // whether nothing was left of the summands of the loss
};

inline size_t shard_search_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? sizeof(ShardSearch<double>) : sizeof(ShardSearch<float>);
}

// A row of sums or totals.
HYPERSIMPLEX_HOST_DEVICE double* row_of(const ShardCall& call, int row, int64_t classes) {
  return call.sums + row * classes;
}

HYPERSIMPLEX_HOST_DEVICE double given(const PerVector& numbers, int64_t c) {
  return numbers.values ? numbers.values[c] : numbers.value;
}

template <class T>
class ShardStep {
 public:
  HYPERSIMPLEX_HOST_DEVICE ShardStep(const LossArgs& args, const ShardCall& call, int64_t c)
      : args_(args),
        call_(call),
        classes_(args.shape.inner),
        c_(c),
        state_(args.state, classes_),
        own_(static_cast<ShardSearch<T>*>(call.searches)[c]) {}

  HYPERSIMPLEX_HOST_DEVICE void take() {
    if (call_.stage == ShardStage::kMoments) return begin();
    if (call_.stage == ShardStage::kCounts) return step();
    if (call_.stage == ShardStage::kEdges) return centre();
    finish();
  }
  HYPERSIMPLEX_HOST_DEVICE bool pending() const {
    return call_.stage == ShardStage::kLoss ? own_.cancelled : own_.search.status == SearchStatus::kSearching;
  }
  HYPERSIMPLEX_HOST_DEVICE bool in_gap() const { return is_gap(own_.search.status); }
  // What the class adds to the loss, before its scale, and to the weights of a mean.
  HYPERSIMPLEX_HOST_DEVICE double loss() const { return class_weight() * own_.loss; }
  HYPERSIMPLEX_HOST_DEVICE double weight() const { return class_weight() * own_.weight; }

 private:
  HYPERSIMPLEX_HOST_DEVICE double total(int row) const { return row_of(call_, row, classes_)[c_]; }
  HYPERSIMPLEX_HOST_DEVICE double class_weight() const { return args_.weight ? args_.weight[c_] : 1; }
  HYPERSIMPLEX_HOST_DEVICE double tau() const { return given(args_.tau, c_); }
  HYPERSIMPLEX_HOST_DEVICE void leave_threshold() {
    state_.p[c_] = own_.search.t.p;
    state_.d[c_] = own_.search.t.d;
  }

  // Processes that disagree on k or tau get no threshold, rather than each another one.
  HYPERSIMPLEX_HOST_DEVICE void begin() {
    const double entries = total(0), taking_part = total(1), count = total(4), sum = total(5);
    const double mean = sum / count, variance = total(6) / count - mean * mean;
    const bool agreed = total(11) == -total(12) && total(13) == -total(14);
    state_.k[c_] = agreed ? class_mass(args_, c_, total(2), taking_part) : double(NAN);
    state_.taking_part[c_] = taking_part;
    own_.weight = total(3);
    own_.cancelled = 0;
    own_.loss = 0;
    own_.search.begin(state_.k[c_], tau(), entries, count, total(7), total(8), T(-total(9)), T(total(10)), mean,
                      variance > 0 ? variance : 0);
    own_.several = entries * double(classes_) < call_.few;
    aim();
  }

  HYPERSIMPLEX_HOST_DEVICE Sweep sweep_at(int i) const { return {total(3 * i), total(3 * i + 1), total(3 * i + 2)}; }

  // The search takes the step from the threshold that came nearest to the root, in the bracket that the others leave.
  HYPERSIMPLEX_HOST_DEVICE void step() {
    Search<T>& search = own_.search;
    if (search.status != SearchStatus::kSearching) return;
    const Sweep first = sweep_at(0);
    const bool settled = first.g == search.last_g && first.h == search.last_h;
    // The greatest threshold with f > 0, the least one with f < 0, and one with f = 0.
    int below = -1, above = -1, zero = -1;
    double f_below = search.f_lo, f_above = search.f_hi;
    Pair lo = search.lo, hi = search.hi;
    for (int i = 0; i < own_.tried; ++i) {
      const Pair t = own_.thresholds[i];
      const double f = search.value(sweep_at(i), t);
      if (f == 0) zero = i;
      if (f > 0 && difference(t, lo) > 0) below = i, lo = t, f_below = f;
      if (f < 0 && difference(hi, t) > 0) above = i, hi = t, f_above = f;
    }
    int nearest = zero >= 0 ? zero : above < 0 || (below >= 0 && f_below < -f_above) ? below : above;
    if (settled || nearest < 0) nearest = 0;  // none: of sums that are no numbers
    if (!settled) search.last_g = search.last_h = -1;
    if (!settled && below >= 0 && above >= 0) {
      const Sweep at_lo = sweep_at(below), at_hi = sweep_at(above);
      if (nearest == below) search.hi = hi, search.f_hi = f_above;
      if (nearest == above) search.lo = lo, search.f_lo = f_below;
      // f is linear between them, so that either tells the root.
      if (at_lo.g == at_hi.g && at_lo.h == at_hi.h) search.last_g = at_lo.g, search.last_h = at_lo.h;
    }
    search.t = own_.thresholds[nearest];
    search.step_to_end(sweep_at(nearest));
    aim();
  }

  // The thresholds to be tried next: the search's own and some towards the ends of the bracket, the denser the nearer.
  HYPERSIMPLEX_HOST_DEVICE void aim() {
    const Search<T>& search = own_.search;
    leave_threshold();
    own_.thresholds[0] = search.t;
    own_.tried = 1;
    if (!own_.several || search.status != SearchStatus::kSearching) return;
    for (int side = 0; side < 2; ++side) {
      double share = 0.5;
      for (int i = 0; i < kShardSides; ++i, share *= 0.25) {
        const double way = share * difference(side ? search.hi : search.lo, search.t);
        const Pair t = renormalised<T>(search.t.p, search.t.d + way);
        if (search.inside(t) && difference(t, search.t) != 0) own_.thresholds[own_.tried++] = t;
      }
    }
  }
  HYPERSIMPLEX_HOST_DEVICE void centre() {
    if (in_gap()) own_.search.t = gap_middle<T>(T(total(0)), T(-total(1)), tau());
    own_.search.status = SearchStatus::kFound;
    leave_threshold();
  }
  // A second turn has no summand beside the loss, and cancels nothing.
  HYPERSIMPLEX_HOST_DEVICE void finish() {
    const Pair t{state_.p[c_], state_.d[c_]};
    const double balance = args_.kind == LossKind::kFenchelYoung && !is_balanced(args_) ? total(3) : 0;
    const double shift = threshold_shift(t, tau(), balance);
    own_.loss = total(2) + shift;
    own_.cancelled = !own_.cancelled && is_cancelled(own_.loss, shift);
    state_.active[c_] = total(0);
    state_.mean[c_] = mean_of_active(total(1), total(0));
  }

  const LossArgs& args_;
  const ShardCall& call_;
  const int64_t classes_, c_;
  const LossState state_;
  ShardSearch<T>& own_;
};

}  // namespace hypersimplex
