// The HyperSimplex loss, fused. Forward: per class, solve, then one sweep for the loss and the sums over the active
// set. Backward: one sweep that reads logits and targets again and writes the gradient. Class indices become small
// blocks of targets on the way, never a one-hot tensor; ignored samples become entries that take no part.
#include "isa_launchers.h"
#include "loss_targets.h"
#include "solve.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {
namespace {

// The rows of LossArgs::state.
struct LossState {
  double *p, *d, *mean, *active, *k, *scale;
  LossState(double* state, int64_t classes)
      : p(state),
        d(state + classes),
        mean(state + 2 * classes),
        active(state + 3 * classes),
        k(state + 4 * classes),
        scale(state + kLossStateRows * classes) {}
};

// (a) FenchelYoung and (b) Weighted as template arguments of function<a, b>.
#define HYPERSIMPLEX_LOSS_VARIANT(function, fenchel_young, weighted, ...) \
  do {                                                                    \
    if (fenchel_young && weighted) function<true, true>(__VA_ARGS__);     \
    if (fenchel_young && !weighted) function<true, false>(__VA_ARGS__);   \
    if (!fenchel_young && weighted) function<false, true>(__VA_ARGS__);   \
    if (!fenchel_young && !weighted) function<false, false>(__VA_ARGS__); \
  } while (false)

// One class of a batch, for what lanes.h cannot express: entry by entry, in double.
template <class In>
struct IrregularClass {
  const Samples<In>& samples;
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
    double logit = samples.ignored(j) ? -HUGE_VAL : load(*x.entry(panel.plan.shape, column, j));
    double y = project_entry(logit, p, d, tau), target = samples.target(panel, column, j);
    return {logit - logit == 0, y > 0 && y < 1, samples.weight(j), y - target, y, target, logit / tau};
  }
  // Total of the loss; |A| and the mean over A beside it.
  double loss(double& active, double& mean) const {
    double total = 0, sum = 0;
    active = 0;
    for (int64_t j = 0; j < panel.plan.n; ++j) {
      Entry e = entry(j);
      active += e.active;
      if (e.active) sum += fenchel_young ? e.s : e.s * e.r;
      double term = fenchel_young ? e.r * (e.z - 0.5 * (e.y + e.target)) : e.r * e.r;
      if (e.r != 0) total += e.s * term;
    }
    mean = active > 0 ? sum / active : 0;
    return total;
  }
  double gradient(int64_t j, double mean, double gain) const {
    Entry e = entry(j);
    if (p != p) return p;
    if (!fenchel_young) return e.active ? gain * (e.s * e.r - mean) : 0;
    double share = e.active ? (p + d) / tau * (e.s - mean) : 0;
    return e.finite ? gain * (e.s * e.r + share) : 0;
  }
};

// [n, C] arrives as n samples of one entry each: the same vectors with the entries in n2.
Strides collapsed(const Shape& shape, const Strides& s) {
  return shape.n2 == 1 ? Strides{s.outer, s.inner, 0, s.n1} : s;
}
LossArgs collapsed(LossArgs args) {
  args.x_strides = collapsed(args.shape, args.x_strides);
  args.target_strides = collapsed(args.shape, args.target_strides);
  if (args.shape.n2 == 1) args.shape = {args.shape.outer, args.shape.inner, 1, args.shape.n1};
  return args;
}

template <class In>
void forward(const LossArgs& args, void* loss, int threads) {
  using T = Compute<In>;
  const int64_t classes = args.shape.inner;
  const Plan plan = make_plan(args.shape, args.x_strides);
  const bool fenchel_young = args.kind == LossKind::kFenchelYoung;
  LossState state(args.state, classes);
  Samples<In> samples(args);
  samples.count(state.k);  // class indices: checks them, leaves the class counts in k
  double* losses = new double[classes];

  for_each_panel(plan, threads, [&](const Panel& panel, int inner_threads) {
    Operand<const In> x(static_cast<const In*>(args.x), args.x_strides, panel);
    auto entries = [&](int64_t step, int64_t steps, T* buffer) {
      return samples.entries(panel, x, step, steps, buffer);
    };
    int64_t first = panel.vector(0);
    samples.masses(panel, inner_threads, state.k + first);
    PanelSolver<T, decltype(entries)> solver(panel, inner_threads, entries);
    solver.solve({state.k, 0}, args.tau, state.p + first, state.d + first);

    Lanes<T> lanes;
    set_lanes(lanes, panel, {state.p, state.d}, args.tau);
    LaneSums total;
    sweep(plan, inner_threads, total, [&](int64_t step, int64_t steps, LaneSums& out) {
      alignas(64) T x_buffer[kBlock], target_buffer[kBlock], weight_buffer[kBlock];
      View<const T> in = solver.entries(step, steps, x_buffer);
      View<const T> target = samples.targets(panel, step, steps, target_buffer);
      const T* weight = samples.weights(panel, step, steps, weight_buffer);
      HYPERSIMPLEX_LOSS_VARIANT(sweep_loss, fenchel_young, samples.weighted(), in.at, target.at, weight, steps,
                                in.stride, target.stride, plan.width, lanes, out);
    });
    for (int c = 0; c < panel.live; ++c) {
      int64_t v = first + c;
      double p = state.p[v], d = state.d[v], tau = at(args.tau, v);
      double balance = fenchel_young && !samples.balanced() ? total.e[c] : 0;  // sum s (y - target)
      double shift = balance == 0 ? 0 : (p + d) / tau * balance;
      state.active[v] = total.a[c];
      state.mean[v] = total.a[c] > 0 ? total.b[c] / total.a[c] : 0;
      losses[v] = total.c[c] + shift;
      bool infinite = fenchel_young && p - p != 0 && losses[v] != 0;
      if (infinite || !regular<T>(p, d, tau))
        losses[v] =
            IrregularClass<In>{samples, panel, x, c, p, d, tau, fenchel_young}.loss(state.active[v], state.mean[v]);
    }
  });

  double weights = 0, sum = 0;
  for (int64_t v = 0; v < classes; ++v) {
    double weight = args.weight ? args.weight[v] : 1;
    weights += weight;
    sum += weight * losses[v];
  }
  delete[] losses;
  *state.scale = args.reduction == Reduction::kMean ? 1 / (weights * samples.total_weight()) : 1;
  bool empty = args.reduction == Reduction::kMean && weights * samples.total_weight() == 0;
  store(T(empty ? NAN : sum * *state.scale), *static_cast<In*>(loss));
}

template <class In>
void backward(const LossArgs& args, const LossBackward& backward, int threads) {
  using T = Compute<In>;
  const Plan plan = make_plan(args.shape, args.x_strides, kMaxLanes);
  const bool fenchel_young = args.kind == LossKind::kFenchelYoung;
  const LossState state(args.state, args.shape.inner);
  const Samples<In> samples(args);
  const double upstream = load(*static_cast<const In*>(backward.grad_output)) * *state.scale * (fenchel_young ? 1 : 2);

  for_each_panel(plan, threads, [&](const Panel& panel, int inner_threads) {
    Operand<const In> x(static_cast<const In*>(args.x), args.x_strides, panel);
    Operand<In> grad(static_cast<In*>(backward.grad), backward.grad_strides, panel);
    int64_t first = panel.vector(0);
    Lanes<T> lanes;
    set_lanes(lanes, panel, {state.p, state.d}, args.tau);
    double gains[kMaxLanes];
    for (int c = 0; c < plan.columns; ++c) {
      int64_t v = first + c;
      bool live = c < panel.live, finite = live && state.p[v] - state.p[v] == 0;
      gains[c] = live ? upstream * (args.weight ? args.weight[v] : 1) / at(args.tau, v) : 0;
      lanes.gain[c] = T(gains[c]);
      lanes.mean[c] = live ? T(state.mean[v]) : 0;
      lanes.lambda[c] = finite ? T((state.p[v] + state.d[v]) / at(args.tau, v)) : 0;
    }
    for (T* row : {lanes.gain, lanes.mean, lanes.lambda}) repeat(row, plan.width, plan.columns);
    for_each_chunk(plan, inner_threads, [&](int64_t step, int64_t steps) {
      alignas(64) T x_buffer[kBlock], target_buffer[kBlock], weight_buffer[kBlock], out_buffer[kBlock];
      View<const T> in = samples.entries(panel, x, step, steps, x_buffer);
      View<const T> target = samples.targets(panel, step, steps, target_buffer);
      const T* weight = samples.weights(panel, step, steps, weight_buffer);
      View<T> out = destination(panel, grad, step, steps, out_buffer);
      HYPERSIMPLEX_LOSS_VARIANT(sweep_loss_gradient, fenchel_young, samples.weighted(), in.at, target.at, weight, steps,
                                in.stride, target.stride, plan.width, lanes, out.at, out.stride);
      deliver(panel, grad, step, steps, out, out_buffer);
    });
    for (int c = 0; c < panel.live; ++c) {
      int64_t v = first + c;
      double tau = at(args.tau, v);
      if (regular<T>(state.p[v], state.d[v], tau)) continue;
      IrregularClass<In> irregular{samples, panel, x, c, state.p[v], state.d[v], tau, fenchel_young};
      for (int64_t j = 0; j < plan.n; ++j)
        store(T(irregular.gradient(j, state.mean[v], gains[c])), *grad.entry(plan.shape, c, j));
    }
  });
}

}  // namespace

void loss_forward(const LossArgs& args, void* loss, int threads) {
  HYPERSIMPLEX_DISPATCH(args.dtype, forward, collapsed(args), loss, threads);
}
void loss_backward(const LossArgs& args, const LossBackward& to, int threads) {
  HYPERSIMPLEX_DISPATCH(args.dtype, backward, collapsed(args),
                        {to.grad_output, to.grad, collapsed(args.shape, to.grad_strides)}, threads);
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
