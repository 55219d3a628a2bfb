// The projection onto the (n,k)-hypersimplex: solves every panel, then writes y = clip((x - t) / tau, 0, 1).
#include <type_traits>

#include "cpu/launchers.h"
#include "cpu/projection/solve_panel.h"
#include "cpu/projection/solvers/row_candidates.h"
#include "cpu/projection/solvers/single_row.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {
namespace {

// Vectors that sweeps.h cannot express, entry by entry.
template <class In>
void project_irregular(const Panel& panel, const Operand<const In>& x, const Operand<In>& y, int column, double p,
                       double d, double tau) {
  using T = Compute<In>;
  const Plan& plan = panel.plan;
  for (int64_t j = 0; j < plan.n; ++j)
    store(T(project_entry(load(*x.entry(plan.shape, column, j)), p, d, tau)), *y.entry(plan.shape, column, j));
}

// A block's y, set to zero.
template <class In>
void clear(const Panel& panel, const Operand<In>& y, int64_t step, int64_t steps) {
  y.for_each_run(panel, step, steps, [&](int64_t, int64_t count, In* at) {
    for (int64_t i = 0; i < count; ++i) at[i * y.n2] = In{};
  });
}

// Where the thresholds of some vectors go: into the state, if anybody wants that.
struct Roots {
  alignas(64) double own_p[kMaxLanes], own_d[kMaxLanes];
  double *const p, *const d;

  Roots(const State& state, int64_t first)
      : p(state.p ? state.p + first : own_p), d(state.d ? state.d + first : own_d) {}
};

// Rows in batches, as far as their mass is small; the others by project_panel.
template <class T, class Body>
void project_rows(const ThresholdArgs& args, const Plan& plan, int threads, const Body& project_panel) {
  for_each_batch(plan, threads, [&](int64_t first, int live) {
    const T* x[kGroup] = {};
    const Roots roots(args.state, first);
    double mass[kGroup] = {}, tau[kGroup] = {}, *p = roots.p, *d = roots.d;
    bool solved[kGroup];
    for (int r = 0; r < live; ++r) {
      x[r] = Operand<const T>(static_cast<const T*>(args.x), args.x_strides, Panel(plan, first + r)).at;
      mass[r] = at(args.k, first + r);
      tau[r] = at(args.tau, first + r);
    }
    Scratch<RowCandidates<T>>()->solve(x, plan.n, live, mass, tau, p, d, solved);
    SingleRow<T> search(plan.n);
    const bool one_by_one = cpu::is_wanted(cpu::Solver::kSingleRow, true);
    for (int r = 0; r < live; ++r) {
      if (!solved[r] && one_by_one) solved[r] = search.solve(x[r], mass[r], tau[r], p + r, d + r);
      const Panel panel(plan, first + r);
      if (!solved[r])
        project_panel(panel, 1);
      else if (args.y)
        project_row(x[r], plan.n, p[r], d[r], tau[r], Operand<T>(static_cast<T*>(args.y), args.y_strides, panel).at);
    }
  });
}

template <class In>
void project(const ThresholdArgs& args, int threads) {
  using T = Compute<In>;
  const Plan plan = make_plan(args.shape, args.x_strides, threads);
  auto project_panel = [&](const Panel& panel, int inner_threads) {
    Operand<const In> x(static_cast<const In*>(args.x), args.x_strides, panel);
    auto entries = [&](int64_t step, int64_t steps, T* buffer) {
      return fetch(panel, x, step, steps, -T(HUGE_VAL), buffer);
    };
    const Scratch<PanelSolver<T, decltype(entries)>> solver(panel, inner_threads, entries);
    const Roots roots(args.state, panel.vector(0));
    double *const p = roots.p, *d = roots.d;
    if (!args.y) {
      cpu::note(solver->solve(args.k, args.tau, p, d));
      return;
    }
    Operand<In> y(static_cast<In*>(args.y), args.y_strides, panel);
    cpu::note(
        solver->solve(args.k, args.tau, p, d, [&](int64_t step, int64_t steps) { clear(panel, y, step, steps); }));
    Lanes<T>& lanes = solver->lanes();
    set_projection(lanes, panel, p, d, args.tau);
    if (const Candidates<T>* tops = solver->tops()) {
      tops->for_each([&](int64_t j, T e) {
        const T value = clip01(((e - lanes.p[0]) - lanes.d[0]) * lanes.rate[0]);
        if (value > 0) store(value, *y.entry(plan.shape, 0, j));
      });
    } else {
      for_each_chunk(plan, inner_threads, [&](int64_t step, int64_t steps) {
        const ScratchArray<T> in_buffer(2 * kBlock);
        T* const out_buffer = in_buffer + kBlock;
        View<const T> in = solver->entries(step, steps, in_buffer);
        View<T> out = destination(panel, y, step, steps, out_buffer);
        sweep_project(in.at, steps, in.stride, panel.live_lanes(), lanes, out.at, out.stride);
        deliver(panel, y, step, steps, out, out_buffer);
      });
    }
    if (all_regular<T>(p, args.tau, panel.vector(0), panel.live)) return;
    for (int c = 0; c < panel.live; ++c) {
      double tau = at(args.tau, panel.vector(c));
      if (!regular<T>(p[c], d[c], tau)) project_irregular(panel, x, y, c, p[c], d[c], tau);
    }
  };
  const bool rows =
      std::is_same_v<In, T> && can_use_rows(plan, args.x_strides) && (!args.y || can_use_rows(plan, args.y_strides));
  refuse_forced(plan, rows, false);
  if constexpr (std::is_same_v<In, T>) {
    if (rows && wants_rows(plan, args.x_strides)) return project_rows<T>(args, plan, threads, project_panel);
  }
  for_each_panel(plan, threads, project_panel);
}

}  // namespace

void threshold(const ThresholdArgs& args, int threads) { HYPERSIMPLEX_DISPATCH(args.dtype, project, args, threads); }

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
