// The sums over a class that its loss and gradient come from: panel by panel, or entry by entry for what sweeps.h
// cannot express.
#pragma once

#include <type_traits>

#include "cpu/projection/lane_thresholds.h"
#include "cpu/projection/loss_targets.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// [n, C] arrives as n samples of one entry each: the same vectors with the entries in n2.
static inline Strides collapsed(const Shape& shape, const Strides& s) {
  return shape.n2 == 1 ? Strides{s.outer, s.inner, 0, s.n1} : s;
}
static inline LossArgs collapsed(LossArgs args) {
  args.x_strides = collapsed(args.shape, args.x_strides);
  args.target_strides = collapsed(args.shape, args.target_strides);
  if (args.shape.n2 == 1) args.shape = {args.shape.outer, args.shape.inner, 1, args.shape.n1};
  return args;
}

// Calls body(fenchel_young, weighted, targets), the former two as std::bool_constant, with what serves this block.
template <class Batch, class Block, class Body>
static void with_variant(const Batch& samples, const Block& in, bool fenchel_young, const Body& body) {
  const DenseTargets<typename Batch::T> dense{in.target.at, in.target.stride};
  if (in.labelled && fenchel_young) return body(std::true_type(), std::false_type(), samples.by_label(in));
  if (in.labelled) return body(std::false_type(), std::false_type(), samples.by_label(in));
  if (fenchel_young && samples.weighted()) return body(std::true_type(), std::true_type(), dense);
  if (fenchel_young) return body(std::true_type(), std::false_type(), dense);
  if (samples.weighted()) return body(std::false_type(), std::true_type(), dense);
  body(std::false_type(), std::false_type(), dense);
}

// One class of a batch, for what sweeps.h cannot express: entry by entry, in double.
template <class In>
struct IrregularClass {
  const LossBatch<In>& samples;
  const Panel& panel;
  const Operand<const In>& x;
  int column;
  double p, d, tau;
  bool fenchel_young;

  struct Entry {
    bool finite, active;
    double s, r, y, target, z;
  };
  Entry entry(int64_t j) const {
    if (samples.ignored(panel, column, j)) return {};
    double logit = load(*x.entry(panel.plan.shape, column, j));
    double y = project_entry(logit, p, d, tau), target = samples.target(panel, column, j);
    return {is_finite(logit), y > 0 && y < 1, samples.weight(j), y - target, y, target, logit / tau};
  }
  // As sweep_loss sums up, but for a loss that is whole.
  struct Sums {
    double active, over_active, loss;
  };
  Sums sums() const {
    Sums total{};
    for (int64_t j = 0; j < panel.plan.n; ++j) {
      Entry e = entry(j);
      total.active += e.active;
      if (e.active) total.over_active += fenchel_young ? e.s : e.s * e.r;
      double term = fenchel_young ? e.r * (e.z - 0.5 * (e.y + e.target)) : e.r * e.r;
      if (e.r != 0) total.loss += e.s * term;
    }
    return total;
  }
  double gradient(int64_t j, double mean, double gain) const {
    Entry e = entry(j);
    if (is_nan(p)) return p;
    if (!fenchel_young) return e.active ? gain * (e.s * e.r - mean) : 0;
    double share = e.active ? (p + d) / tau * (e.s - mean) : 0;
    return e.finite ? gain * (e.s * e.r + share) : 0;
  }
};

// The sums of sweep_loss over a panel that has been solved.
template <class In, class Entries>
static void sum_panel(const LossBatch<In>& samples, const Panel& panel, int threads, const Entries& entries,
                      const LossState& state, const PerVector& tau, bool fenchel_young, LaneSums& total) {
  using T = Compute<In>;
  const Scratch<Lanes<T>> lanes;
  set_lanes(*lanes, panel, {state.p, state.d}, tau);
  sweep(panel.plan, threads, total, [&](int64_t step, int64_t steps, LaneSums& out) {
    const ScratchArray<T> buffers(3 * kBlock);
    auto read = [&](int64_t step, int64_t steps, bool, T* buffer) { return entries(step, steps, buffer); };
    const auto in = samples.block(panel, read, step, steps, buffers, buffers + kBlock, buffers + 2 * kBlock);
    with_variant(samples, in, fenchel_young, [&](auto variant, auto weighted, const auto& targets) {
      sweep_loss<variant(), weighted()>(in.x.at, targets, in.weight, steps, in.x.stride, panel.lanes(),
                                        panel.plan.width, *lanes, out);
    });
  });
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
