// The HyperSimplex loss, fused. Forward: per class, solve, then one sweep for the loss and the sums over the active
// set. Backward: one sweep that reads logits and targets again and writes the gradient. Class indices become small
// blocks of targets on the way, never a one-hot tensor; ignored samples become entries that take no part.
#include "cpu/launchers.h"
#include "cpu/projection/loss_targets.h"
#include "cpu/projection/solvers/column_candidates.h"
#include "loss_state.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {
namespace {

// (a) FenchelYoung and (b) Weighted as template arguments of function<a, b>.
#define HYPERSIMPLEX_LOSS_VARIANT(function, fenchel_young, weighted, ...) \
  do {                                                                    \
    if (fenchel_young && weighted) function<true, true>(__VA_ARGS__);     \
    if (fenchel_young && !weighted) function<true, false>(__VA_ARGS__);   \
    if (!fenchel_young && weighted) function<false, true>(__VA_ARGS__);   \
    if (!fenchel_young && !weighted) function<false, false>(__VA_ARGS__); \
  } while (false)

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
    mean = mean_of_active(sum, active);
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

// The sums of sweep_loss for the squared loss from the tops alone: below them y = 0, and a residual is minus a target.
template <class In>
void sum_tops(const LossBatch<In>& samples, const Panel& panel, const ColumnCandidates<Compute<In>>& tail,
              const Lanes<Compute<In>>& lanes, const double* k, LaneSums& out) {
  using T = Compute<In>;
  for (int c = 0; c < panel.live; ++c) {
    const int64_t v = panel.vector(c);
    double active = 0, mean = 0, loss = samples.sum_squares(k[v]);
    tail.for_each(c, [&](int64_t j, T x) {
      if (!(x > lanes.floor[c])) return;
      const T y = clip01(((x - lanes.p[c]) - lanes.d[c]) * lanes.rate[c]), target = T(samples.target(panel, c, j));
      const double r = y - target;
      loss += r * r - double(target) * double(target);
      if (x < lanes.ceiling[c]) {
        active += 1;
        mean += r;
      }
    });
    out.a[c] = active;
    out.b[c] = mean;
    out.c[c] = loss;
  }
}

template <class In>
void forward(const LossArgs& args, void* loss, int threads) {
  using T = Compute<In>;
  const int64_t classes = args.shape.inner;
  const Plan plan = make_plan(args.shape, args.x_strides, kAbreast);
  const bool fenchel_young = args.kind == LossKind::kFenchelYoung;
  refuse_forced(plan, false, true);
  LossState state(args.state, classes);
  LossBatch<In> samples(args);
  const bool sparse = !fenchel_young && samples.countable();
  samples.count(state.k);  // class indices: checks them, leaves the class counts in k
  std::unique_ptr<double[]> losses(new double[classes]);
  std::unique_ptr<bool[]> some_ignored(new bool[plan.panels]);

  for_each_team(plan, threads, [&](int64_t begin, int64_t end, int inner_threads) {
    auto source = [&](int64_t i) {
      Operand<const In> x(static_cast<const In*>(args.x), args.x_strides, Panel(plan, i));
      return [&samples, &plan, x, i, ignored = some_ignored[i]](int64_t step, int64_t steps, T* buffer) {
        return samples.entries(Panel(plan, i), x, step, steps, ignored, buffer);
      };
    };
    const ScratchArray<ColumnCandidates<T>> tails(end - begin);
    for (int64_t i = begin; i < end; ++i) {
      const Panel panel(plan, i);
      some_ignored[i] = samples.masses(panel, inner_threads, state.k + panel.vector(0));
      tails[i - begin].open(panel, source(i), {state.k, 0}, args.tau);
    }
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk)
      for (int64_t i = begin; i < end; ++i) tails[i - begin].collect(plan, chunk, source(i));
    const ScratchArray<Lanes<T>> lanes(end - begin);
    for (int64_t i = begin; i < end; ++i) {
      const Panel panel(plan, i);
      const int64_t first = panel.vector(0);
      ColumnCandidates<T>& tail = tails[i - begin];
      tail.close(panel, {state.k, 0}, args.tau);
      auto entries = source(i);
      if (tail.length() > 0)
        solve_candidates(panel, tail, {state.k, 0}, args.tau, state.p + first, state.d + first);
      else
        cpu::note(Scratch<PanelSolver<T, decltype(entries)>>(panel, inner_threads, entries)
                      ->solve({state.k, 0}, args.tau, state.p + first, state.d + first));
      set_lanes(lanes[i - begin], panel, {state.p, state.d}, args.tau);
    }

    const ScratchArray<LaneSums> totals(end - begin);
    sweep(plan, inner_threads, end - begin, &totals[0], [&](int64_t i, int64_t step, int64_t steps, LaneSums& out) {
      if (sparse && tails[i].length() > 0) return;
      const Panel panel(plan, begin + i);
      const Operand<const In> x(static_cast<const In*>(args.x), args.x_strides, panel);
      const ScratchArray<T> buffers(3 * kBlock);
      const auto in = samples.block(panel, x, step, steps, buffers, buffers + kBlock, buffers + 2 * kBlock);
      HYPERSIMPLEX_LOSS_VARIANT(sweep_loss, fenchel_young, samples.weighted(), in.x.at, in.target.at, in.weight, steps,
                                in.x.stride, in.target.stride, plan.width, lanes[i], out);
    });
    for (int64_t i = begin; sparse && i < end; ++i)
      if (tails[i - begin].length() > 0)
        sum_tops(samples, Panel(plan, i), tails[i - begin], lanes[i - begin], state.k, totals[i - begin]);
    for (int64_t v = begin * plan.columns; v < smaller(end * plan.columns, classes); ++v) {
      const Panel panel(plan, v / plan.columns);
      const int c = int(v % plan.columns);
      const LaneSums& total = totals[panel.index - begin];
      double p = state.p[v], d = state.d[v], tau = at(args.tau, v);
      double balance = fenchel_young && !is_balanced(args) ? total.e[c] : 0;
      double shift = threshold_shift({p, d}, tau, balance);
      state.active[v] = total.a[c];
      state.mean[v] = mean_of_active(total.b[c], total.a[c]);
      losses[v] = total.c[c] + shift;
      bool infinite = fenchel_young && !is_finite(p) && losses[v] != 0;
      if (!infinite && !is_cancelled(losses[v], shift) && regular<T>(p, d, tau)) continue;
      Operand<const In> x(static_cast<const In*>(args.x), args.x_strides, panel);
      losses[v] =
          IrregularClass<In>{samples, panel, x, c, p, d, tau, fenchel_young}.loss(state.active[v], state.mean[v]);
    }
  });

  double weights = 0, sum = 0;
  for (int64_t v = 0; v < classes; ++v) {
    double weight = args.weight ? args.weight[v] : 1;
    weights += weight * samples.total_weight(v);
    sum += weight * losses[v];
  }
  *state.scale = loss_scale(args.reduction, weights);
  store(T(reduced_loss(args.reduction, sum, weights, *state.scale)), *static_cast<In*>(loss));
}

template <class In>
void backward(const LossArgs& args, const LossBackward& backward, int threads) {
  using T = Compute<In>;
  const Plan plan = make_plan(args.shape, args.x_strides, kAbreast);
  const bool fenchel_young = args.kind == LossKind::kFenchelYoung;
  const LossState state(args.state, args.shape.inner);
  const LossBatch<In> samples(args);
  const double upstream = load(*static_cast<const In*>(backward.grad_output)) * *state.scale * (fenchel_young ? 1 : 2);

  std::unique_ptr<Lanes<T>[]> lanes(new Lanes<T>[plan.panels]);
  auto gain = [&](int64_t v) { return gradient_gain(args, upstream, at(args.tau, v), v); };
  for (int64_t i = 0; i < plan.panels; ++i) {
    const Panel panel(plan, i);
    set_lanes(lanes[i], panel, {state.p, state.d}, args.tau);
    for (int c = 0; c < plan.columns; ++c) {
      int64_t v = panel.vector(c);
      bool live = c < panel.live;
      lanes[i].gain[c] = live ? T(gain(v)) : 0;
      lanes[i].mean[c] = live ? T(state.mean[v]) : 0;
      lanes[i].lambda[c] = live ? T(finite_lambda({state.p[v], state.d[v]}, at(args.tau, v))) : 0;
    }
    for (T* row : {lanes[i].gain, lanes[i].mean, lanes[i].lambda}) repeat(row, plan.width, plan.columns);
  }

  // Panels side by side take turns at a chunk of rows, so that a wide matrix is walked row by row.
  auto write = [&](int64_t chunk, int64_t i) {
    const Panel panel(plan, i);
    Operand<const In> x(static_cast<const In*>(args.x), args.x_strides, panel);
    Operand<In> grad(static_cast<In*>(backward.grad), backward.grad_strides, panel);
    for_each_block(plan, chunk, [&](int64_t step, int64_t steps) {
      const ScratchArray<T> buffers(4 * kBlock);
      T* const out_buffer = buffers + 3 * kBlock;
      const auto in = samples.block(panel, x, step, steps, buffers, buffers + kBlock, buffers + 2 * kBlock);
      View<T> out = destination(panel, grad, step, steps, out_buffer);
      HYPERSIMPLEX_LOSS_VARIANT(sweep_loss_gradient, fenchel_young, samples.weighted(), in.x.at, in.target.at,
                                in.weight, steps, in.x.stride, in.target.stride, plan.width, lanes[i], out.at,
                                out.stride);
      deliver(panel, grad, step, steps, out, out_buffer);
    });
  };
  const int team = threads_for(plan, threads);
  if (plan.chunks >= team)
    parallel_for(plan.chunks, team, [&](int64_t chunk) {
      for (int64_t i = 0; i < plan.panels; ++i) write(chunk, i);
    });
  else
    parallel_for(plan.panels, team, [&](int64_t i) {
      for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) write(chunk, i);
    });

  for_each_panel(plan, threads, [&](const Panel& panel, int) {
    Operand<const In> x(static_cast<const In*>(args.x), args.x_strides, panel);
    Operand<In> grad(static_cast<In*>(backward.grad), backward.grad_strides, panel);
    for (int c = 0; c < panel.live; ++c) {
      int64_t v = panel.vector(c);
      double tau = at(args.tau, v);
      if (regular<T>(state.p[v], state.d[v], tau)) continue;
      IrregularClass<In> irregular{samples, panel, x, c, state.p[v], state.d[v], tau, fenchel_young};
      for (int64_t j = 0; j < plan.n; ++j)
        store(T(irregular.gradient(j, state.mean[v], gain(v))), *grad.entry(plan.shape, c, j));
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
