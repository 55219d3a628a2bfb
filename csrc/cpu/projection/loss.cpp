// The HyperSimplex loss, fused. Forward: per class, solve, then one sweep for the loss and the sums over the active
// set. Backward: one sweep that reads logits and targets again and writes the gradient. Class indices are compared with
// the lanes of a row, or become small blocks of targets on the way, never a one-hot tensor; ignored samples become
// entries that take no part.
#include "cpu/launchers.h"
#include "cpu/projection/loss_sums.h"
#include "cpu/projection/solve_panel.h"
#include "cpu/projection/solvers/column_candidates.h"
#include "loss_state.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {
namespace {

// The sums of sweep_loss for the squared loss from the tops alone: below them y = 0, and a residual is minus a target.
template <class In>
void sum_tops(const LossBatch<In>& samples, const Panel& panel, const ColumnCandidates<Compute<In>>& tops,
              const LossState& state, const PerVector& tau, LaneSums& out) {
  using T = Compute<In>;
  const Scratch<Lanes<T>> set;
  const Lanes<T>& lanes = *set;
  set_lanes(*set, panel, {state.p, state.d}, tau);
  for (int c = 0; c < panel.live; ++c) {
    if (!tops.has(c)) continue;
    const int64_t v = panel.vector(c);
    const T floor = lanes.floor[c], ceiling = lanes.ceiling[c], p = lanes.p[c], d = lanes.d[c], rate = lanes.rate[c];
    double active = 0, mean = 0, loss = samples.sum_squares(state.k[v]);
    tops.for_each(c, [&](int64_t j, T x) {
      const T y = clip01(((x - p) - d) * rate), target = samples.target_of_label(samples.index(j) == v);
      const double r = y - target;
      const bool is_active = (x > floor) & (x < ceiling);
      loss += r * r - double(target) * double(target);
      active += is_active;
      mean += is_active ? r : 0.0;
    });
    out.a[c] = active;
    out.b[c] = mean;
    out.c[c] = loss;
  }
}

// What the sums over a panel make of its classes.
template <class In>
void finish(const LossBatch<In>& samples, const Panel& panel, const LaneSums& total, const LossState& state,
            const LossArgs& args, double* losses) {
  const bool fenchel_young = args.kind == LossKind::kFenchelYoung;
  for (int c = 0; c < panel.live; ++c) {
    const int64_t v = panel.vector(c);
    const double p = state.p[v], d = state.d[v], tau = at(args.tau, v);
    const double balance = fenchel_young && !is_balanced(args) ? total.e[c] : 0;
    const double shift = threshold_shift({p, d}, tau, balance);
    state.active[v] = total.a[c];
    state.mean[v] = mean_of_active(total.b[c], total.a[c]);
    losses[v] = total.c[c] + shift;
    const bool infinite = fenchel_young && !is_finite(p) && losses[v] != 0;
    if (!infinite && !is_cancelled(losses[v], shift) && regular<Compute<In>>(p, d, tau)) continue;
    const Operand<const In> x(static_cast<const In*>(args.x), args.x_strides, panel);
    const auto sums = IrregularClass<In>{samples, panel, x, c, p, d, tau, fenchel_young}.sums();
    losses[v] = sums.loss;
    state.active[v] = sums.active;
    state.mean[v] = mean_of_active(sums.over_active, sums.active);
  }
}

template <class In>
void forward(const LossArgs& args, void* loss, int threads) {
  using T = Compute<In>;
  const int64_t classes = args.shape.inner;
  const Plan plan = make_plan(args.shape, args.x_strides, threads);
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
    const ScratchArray<ColumnCandidates<T>> tops(end - begin);
    bool open = false;
    for (int64_t i = begin; i < end; ++i) {
      const Panel panel(plan, i);
      some_ignored[i] =
          samples.masses(panel, inner_threads, state.k + panel.vector(0), state.taking_part + panel.vector(0));
      tops[i - begin].open(panel, source(i), {state.k, 0}, args.tau);
      open |= tops[i - begin].is_open();
    }
    if (open)
      for_each_rows(plan, end - begin, [&](int64_t step, int64_t steps) {
        for (int64_t i = begin; i < end; ++i) tops[i - begin].collect(source(i), step, steps);
      });
    for (int64_t i = begin; i < end; ++i) {
      const Panel panel(plan, i);
      ColumnCandidates<T>& top = tops[i - begin];
      top.close(panel, {state.k, 0}, args.tau);
      double *const p = state.p + panel.vector(0), *const d = state.d + panel.vector(0);
      const Scratch<LaneSums> totals;
      const auto entries = source(i);
      if (top.columns() == panel.live) {
        solve_candidates(panel, top, {state.k, 0}, args.tau, p, d);
        if (!sparse) sum_panel(samples, panel, inner_threads, entries, state, args.tau, fenchel_young, *totals);
      } else {  // all columns, as the others cost nothing more
        const Scratch<PanelSolver<T, decltype(entries)>> solver(panel, inner_threads, entries);
        cpu::note(solver->solve({state.k, 0}, args.tau, p, d));
        if (top.columns() > 0) solve_candidates(panel, top, {state.k, 0}, args.tau, p, d);
        auto read = [&](int64_t step, int64_t steps, T* buffer) { return solver->entries(step, steps, buffer); };
        sum_panel(samples, panel, inner_threads, read, state, args.tau, fenchel_young, *totals);
      }
      if (sparse && top.columns() > 0) sum_tops(samples, panel, top, state, args.tau, *totals);
      finish(samples, panel, *totals, state, args, losses.get());
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
  // A matrix is walked row by row, unless its rows are too few for the threads.
  const bool few = args.shape.n1 * args.shape.n2 < kFewRows * kPanelsPerThread * threads;
  const Plan plan =
      few ? make_plan(args.shape, args.x_strides, threads) : make_plan_of_width(args.shape, args.x_strides, INT32_MAX);
  const bool fenchel_young = args.kind == LossKind::kFenchelYoung;
  const LossState state(args.state, args.shape.inner);
  const LossBatch<In> samples(args);
  const double upstream = load(*static_cast<const In*>(backward.grad_output)) * *state.scale * (fenchel_young ? 1 : 2);
  auto gain = [&](int64_t v) { return gradient_gain(args, upstream, at(args.tau, v), v); };

  const int64_t each = GradientLanes<T>::size(plan.width);
  const Aligned<T> memory(each * plan.panels);
  auto lanes_of = [&](int64_t i) { return GradientLanes<T>(memory + i * each, plan.width); };
  bool irregular = false;
  for (int64_t i = 0; i < plan.panels; ++i) {
    const Panel panel(plan, i);
    const GradientLanes<T> lanes = lanes_of(i);
    for (int c = 0; c < plan.columns; ++c) {
      const bool live = c < panel.live;
      const int64_t v = live ? panel.vector(c) : 0;
      const double p = live ? state.p[v] : HUGE_VAL, d = state.d[v], tau = at(args.tau, v);
      set_lane(lanes, c, p, d, tau);
      lanes.gain[c] = T(gain(v));
      lanes.mean[c] = T(state.mean[v]);
      lanes.lambda[c] = T(finite_lambda({p, d}, tau));
      irregular |= live && !regular<T>(p, d, tau);
    }
    for (T* row : {lanes.floor, lanes.ceiling, lanes.p, lanes.d, lanes.rate, lanes.gain, lanes.mean, lanes.lambda})
      repeat(row, plan.width, plan.columns);
  }

  // By chunks of rows rather than by panels, so that a matrix is walked row by row whatever its order.
  parallel_for(plan.chunks * plan.panels, threads_for(plan, threads), [&](int64_t part) {
    const Panel panel(plan, part % plan.panels);
    const Operand<const In> x(static_cast<const In*>(args.x), args.x_strides, panel);
    const Operand<In> grad(static_cast<In*>(backward.grad), backward.grad_strides, panel);
    const int64_t entries = plan.block_entries();
    const ScratchArray<T> buffers(4 * entries);
    T* const out_buffer = buffers + 3 * entries;
    auto read = [&](int64_t step, int64_t steps, bool some_ignored, T* buffer) {
      return samples.entries(panel, x, step, steps, some_ignored, buffer);
    };
    for_each_block(plan, part / plan.panels, [&](int64_t step, int64_t steps) {
      const auto in = samples.block(panel, read, step, steps, buffers, buffers + entries, buffers + 2 * entries);
      const View<T> out = destination(panel, grad, step, steps, out_buffer);
      with_variant(samples, in, fenchel_young, [&](auto variant, auto weighted, const auto& targets) {
        sweep_loss_gradient<variant(), weighted()>(in.x.at, targets, in.weight, steps, in.x.stride, panel.live_lanes(),
                                                   plan.width, lanes_of(panel.index), out.at, out.stride);
      });
      deliver(panel, grad, step, steps, out, out_buffer);
    });
  });

  for (int64_t i = 0; irregular && i < plan.panels; ++i) {
    const Panel panel(plan, i);
    const Operand<const In> x(static_cast<const In*>(args.x), args.x_strides, panel);
    const Operand<In> grad(static_cast<In*>(backward.grad), backward.grad_strides, panel);
    for (int c = 0; c < panel.live; ++c) {
      const int64_t v = panel.vector(c);
      const double tau = at(args.tau, v);
      if (regular<T>(state.p[v], state.d[v], tau)) continue;
      const IrregularClass<In> one{samples, panel, x, c, state.p[v], state.d[v], tau, fenchel_young};
      for (int64_t j = 0; j < plan.n; ++j)
        store(T(one.gradient(j, state.mean[v], gain(v))), *grad.entry(plan.shape, c, j));
    }
  }
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
