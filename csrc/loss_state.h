// What the fused loss keeps of every class from the forward to the backward, and the arithmetic that the CPU and the
// CUDA side share: they differ in how they sum over a class, and agree in what they do with the sums.
#pragma once

#include "hypersimplex.h"
#include "newton.h"

namespace hypersimplex {

// LossArgs::state: its rows, a number per class each, and the number behind them.
struct LossState {
  double *p, *d, *mean, *active, *k, *taking_part, *scale;
  HYPERSIMPLEX_HOST_DEVICE LossState(double* state, int64_t classes)
      : p(state),
        d(state + classes),
        mean(state + 2 * classes),
        active(state + 3 * classes),
        k(state + 4 * classes),
        taking_part(state + 5 * classes),
        scale(state + kLossStateRows * classes) {}
};

// ---- forward ----

// Targets become keep * target + off: label smoothing.
HYPERSIMPLEX_HOST_DEVICE double smoothing_off(const LossArgs& args) {
  return args.label_smoothing / double(args.shape.inner > 2 ? args.shape.inner : 2);
}

// k of class c, where the targets of the entries that take part have this sum.
HYPERSIMPLEX_HOST_DEVICE double class_mass(const LossArgs& args, int64_t c, double targets, double taking_part) {
  if (args.mass_kind == MassKind::kFraction) return whole_part(args.k.value, taking_part);
  if (args.mass_kind == MassKind::kValue) return args.k.values ? args.k.values[c] : args.k.value;
  if (args.label_smoothing == 0) return targets;
  return (1 - args.label_smoothing) * targets + smoothing_off(args) * taking_part;
}

constexpr double kCancelled = 64;  // how much smaller a sum is than its parts where these are computed anew

// Whether sum (y - target) over a class is zero by construction: its mass is exact and all weights are equal.
HYPERSIMPLEX_HOST_DEVICE bool is_balanced(const LossArgs& args) {
  return args.mass_kind == MassKind::kTargets && args.sample_weight == nullptr;
}

// The Fenchel-Young loss is summed up relative to the threshold. This is what the threshold itself adds, with `balance`
// = sum s (y - target): t may be infinite where that is zero.
HYPERSIMPLEX_HOST_DEVICE double threshold_shift(Pair t, double tau, double balance) {
  return balance == 0 ? 0 : (t.p + t.d) / tau * balance;
}

// A threshold in the middle of a wide gap is far from all logits: of the loss, to which `shift` has been added, too few
// digits may be left.
HYPERSIMPLEX_HOST_DEVICE bool is_cancelled(double loss, double shift) {
  return shift != 0 && fabs(loss) < fabs(shift) / kCancelled;
}

HYPERSIMPLEX_HOST_DEVICE double mean_of_active(double sum, double active) { return active > 0 ? sum / active : 0; }

// The loss is scale * sum_c w_c loss_c, but no number where the mean is taken of nothing.
HYPERSIMPLEX_HOST_DEVICE double loss_scale(Reduction reduction, double weights) {
  return reduction == Reduction::kMean ? 1 / weights : 1;
}
HYPERSIMPLEX_HOST_DEVICE double reduced_loss(Reduction reduction, double sum, double weights, double scale) {
  return reduction == Reduction::kMean && weights == 0 ? double(NAN) : sum * scale;
}

// ---- the running average of thresholds ----

template <class T>
HYPERSIMPLEX_HOST_DEVICE void average_threshold(const ThresholdAverage& all, int64_t c) {
  const double t = all.p[c] + all.d[c];
  if (!is_finite(t)) return;
  const double plain = 1 / double(++all.batches[c]), share = plain > all.momentum ? plain : all.momentum;
  T& average = static_cast<T*>(all.average)[c];
  average = T(double(average) + share * (t - double(average)));
}

// ---- backward ----

// The factor of a class's gradient, and lambda = t / tau, which is not needed where t is infinite.
HYPERSIMPLEX_HOST_DEVICE double gradient_gain(const LossArgs& args, double upstream, double tau, int64_t c) {
  return upstream * (args.weight ? args.weight[c] : 1) / tau;
}
HYPERSIMPLEX_HOST_DEVICE double finite_lambda(Pair t, double tau) { return is_finite(t.p) ? (t.p + t.d) / tau : 0; }

}  // namespace hypersimplex
