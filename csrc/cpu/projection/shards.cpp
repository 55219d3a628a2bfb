// Sums over a shard of the samples, for thresholds of samples that are spread over processes, and the steps between
// them. The sweeps are those of the general solver and of the loss; the search is csrc/shard_search.h.
#include "cpu/launchers.h"
#include "cpu/projection/loss_sums.h"
#include "cpu/projection/solvers/general.h"
#include "shard_search.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {
namespace {

template <class In>
class Shard {
 public:
  using T = Compute<In>;

  Shard(const LossArgs& args, const ShardCall& call, int threads)
      : args_(args),
        call_(call),
        plan_(make_plan(args.shape, args.x_strides, threads)),
        threads_(threads),
        samples_(args),
        searches_(static_cast<ShardSearch<T>*>(call.searches)) {}

  void sum() {
    if (call_.stage == ShardStage::kMoments && has_targets()) {
      for (int64_t c = 0; c < args_.shape.inner; ++c) row(2)[c] = 0;
      samples_.count(row(2));
    }
    for_each_team(plan_, threads_, [&](int64_t begin, int64_t end, int inner_threads) {
      for (int64_t i = begin; i < end; ++i) sum(Panel(plan_, i), inner_threads);
    });
  }

 private:
  bool has_targets() const { return args_.target_kind != TargetKind::kNone; }
  double* row(int i) const { return row_of(call_, i, args_.shape.inner); }
  double tau(int64_t v) const { return at(args_.tau, v); }
  State thresholds() const {
    const LossState state(args_.state, args_.shape.inner);
    return {state.p, state.d};
  }

  void sum(const Panel& panel, int threads) {
    const Operand<const In> x(static_cast<const In*>(args_.x), args_.x_strides, panel);
    bool some_ignored = false;
    if (call_.stage == ShardStage::kMoments)
      some_ignored = count_targets(panel, threads);
    else
      for (int c = 0; c < panel.live; ++c) some_ignored |= searches_[panel.vector(c)].some_ignored != 0;
    auto entries = [&](int64_t step, int64_t steps, T* buffer) {
      return samples_.entries(panel, x, step, steps, some_ignored, buffer);
    };
    if (call_.stage == ShardStage::kLoss) return sum_loss(panel, threads, x, entries);
    const Scratch<General<T, decltype(entries)>> general(panel, threads, entries);
    if (call_.stage == ShardStage::kMoments) return sum_moments(panel, *general);
    if (call_.stage == ShardStage::kCounts) return sum_counts(panel, x, some_ignored, *general);
    find_edges(panel, *general);
  }

  // Returns whether some entries are ignored.
  bool count_targets(const Panel& panel, int threads) {
    const int64_t first = panel.vector(0);
    const bool some_ignored = has_targets() && samples_.tally(panel, threads, row(2) + first, row(1) + first);
    for (int64_t v = first; v < first + panel.live; ++v) {
      row(0)[v] = double(plan_.n);
      if (!has_targets()) row(1)[v] = double(plan_.n), row(2)[v] = 0;
      row(3)[v] = has_targets() ? samples_.total_weight(v) : 0;
      const double k = at(args_.k, v);
      row(11)[v] = k;
      row(12)[v] = -k;
      row(13)[v] = tau(v);
      row(14)[v] = -tau(v);
      searches_[v].some_ignored = some_ignored;
    }
    return some_ignored;
  }

  template <class Sweeper>
  void sum_moments(const Panel& panel, Sweeper& general) {
    general.measure();
    for (int c = 0; c < panel.live; ++c) {
      const int64_t v = panel.vector(c);
      const auto of = general.moments(c);
      row(4)[v] = of.count;
      row(5)[v] = of.sum + of.count * of.shift;
      row(6)[v] = of.squares + (2 * of.sum + of.count * of.shift) * of.shift;
      row(7)[v] = of.infinite;
      row(8)[v] = of.nan;
      row(9)[v] = -double(of.low);
      row(10)[v] = double(of.high);
    }
  }

  // Of the thresholds that are to be tried; classes that have been found are not looked at.
  template <class Sweeper>
  void sum_counts(const Panel& panel, const Operand<const In>& x, bool some_ignored, Sweeper& general) {
    for (int i = 0; i < kShardThresholds; ++i) {
      int wanted = 0;
      auto wants = [&](int c) {
        const ShardSearch<T>& own = searches_[panel.vector(c)];
        return own.search.status == SearchStatus::kSearching && i < own.tried;
      };
      for (int c = 0; c < panel.live; ++c) wanted += wants(c);
      if (wanted == 0) break;
      auto threshold = [&](int c) { return wants(c) ? searches_[panel.vector(c)].thresholds[i] : Pair{HUGE_VAL, 0}; };
      const LaneSums& sums = general.count(threshold, args_.tau);
      for (int c = 0; c < panel.live; ++c) {
        const int64_t v = panel.vector(c);
        Sweep at{sums.a[c], sums.b[c], sums.c[c]};
        if (wants(c) && tau(v) >= kMostTau<T>) at = wide_counts(panel, x, some_ignored, c, threshold(c));
        row(3 * i)[v] = at.g;
        row(3 * i + 1)[v] = at.h;
        row(3 * i + 2)[v] = at.S;
      }
    }
  }
  // Where sums of T would overflow.
  Sweep wide_counts(const Panel& panel, const Operand<const In>& x, bool some_ignored, int c, Pair t) const {
    const double tau = this->tau(panel.vector(c)), unit = unit_of<T>(tau);
    const T floor = active_floor<T>(t), ceiling = active_ceiling<T>(t, tau);
    Sweep sums{};
    for (int64_t j = 0; j < plan_.n; ++j) {
      if (some_ignored && samples_.ignored(panel, c, j)) continue;
      const T logit = load(*x.entry(plan_.shape, c, j));
      sums.g += logit > floor;
      sums.h += logit >= ceiling;
      if (logit > floor && logit < ceiling) sums.S += double(logit) * unit - t.p * unit;
    }
    return sums;
  }

  template <class Sweeper>
  void find_edges(const Panel& panel, Sweeper& general) {
    alignas(64) T edges[kMaxLanes] = {};
    const State at = thresholds();
    for (int c = 0; c < panel.live; ++c) {
      const int64_t v = panel.vector(c);
      const SearchStatus status = searches_[v].search.status;
      const Pair t{at.p[v], at.d[v]};
      if (status == SearchStatus::kGapAbove) edges[c] = active_floor<T>(t);
      if (status == SearchStatus::kGapBelow) edges[c] = from_ordered<T>(to_ordered(active_ceiling<T>(t, tau(v))) - 1);
    }
    const LaneRange<T>& beside = general.beside(edges);
    for (int c = 0; c < panel.live; ++c) {
      row(0)[panel.vector(c)] = double(beside.high[c]);
      row(1)[panel.vector(c)] = -double(beside.low[c]);
    }
  }

  template <class Entries>
  void sum_loss(const Panel& panel, int threads, const Operand<const In>& x, const Entries& entries) {
    const bool fenchel_young = args_.kind == LossKind::kFenchelYoung;
    const LossState state(args_.state, args_.shape.inner);
    const Scratch<LaneSums> total;
    sum_panel(samples_, panel, threads, entries, state, args_.tau, fenchel_young, *total);
    for (int c = 0; c < panel.live; ++c) {
      const int64_t v = panel.vector(c);
      const double p = state.p[v], d = state.d[v];
      double sums[] = {total->a[c], total->b[c], total->c[c], total->e[c]};
      const bool wide = searches_[v].cancelled || (fenchel_young && !is_finite(p)) || !regular<T>(p, d, tau(v));
      if (wide) {
        const auto all = IrregularClass<In>{samples_, panel, x, c, p, d, tau(v), fenchel_young}.sums();
        sums[0] = all.active, sums[1] = all.over_active, sums[2] = all.loss, sums[3] = 0;
      }
      for (int i = 0; i < 4; ++i) row(i)[v] = sums[i];
    }
  }

  const LossArgs& args_;
  const ShardCall& call_;
  const Plan plan_;
  const int threads_;
  LossBatch<In> samples_;
  ShardSearch<T>* const searches_;
};

template <class In>
void sum_shard(const LossArgs& args, const ShardCall& call, int threads) {
  Shard<In>(args, call, threads).sum();
}

}  // namespace

void shard_sums(const LossArgs& args, const ShardCall& call, int threads) {
  HYPERSIMPLEX_DISPATCH(args.dtype, sum_shard, collapsed(args), call, threads);
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
