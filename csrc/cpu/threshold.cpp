// The projection onto the (n,k)-hypersimplex: solves every panel, then writes y = clip((x - t) / tau, 0, 1).
#include "isa_launchers.h"
#include "solve.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {
namespace {

// Vectors that lanes.h cannot express, entry by entry.
template <class In>
void project_irregular(const Panel& panel, const Operand<const In>& x, const Operand<In>& y, int column, double p,
                       double d, double tau) {
  using T = Compute<In>;
  const Plan& plan = panel.plan;
  for (int64_t j = 0; j < plan.n; ++j)
    store(T(project_entry(load(*x.entry(plan.shape, column, j)), p, d, tau)), *y.entry(plan.shape, column, j));
}

template <class In>
void project(const ThresholdArgs& args, int threads) {
  using T = Compute<In>;
  const Plan plan = make_plan(args.shape, args.x_strides);
  for_each_panel(plan, threads, [&](const Panel& panel, int inner_threads) {
    Operand<const In> x(static_cast<const In*>(args.x), args.x_strides, panel);
    auto entries = [&](int64_t step, int64_t steps, T* buffer) {
      return fetch(panel, x, step, steps, -T(HUGE_VAL), buffer);
    };
    PanelSolver<T, decltype(entries)> solver(panel, inner_threads, entries);
    double *p = args.state.p + panel.vector(0), *d = args.state.d + panel.vector(0);
    solver.solve(args.k, args.tau, p, d);
    if (!args.y) return;

    Operand<In> y(static_cast<In*>(args.y), args.y_strides, panel);
    Lanes<T> lanes;
    set_projection(lanes, panel, p, d, args.tau);
    for_each_chunk(plan, inner_threads, [&](int64_t step, int64_t steps) {
      alignas(64) T in_buffer[kBlock], out_buffer[kBlock];
      View<const T> in = solver.entries(step, steps, in_buffer);
      View<T> out = destination(panel, y, step, steps, out_buffer);
      sweep_project(in.at, steps, in.stride, plan.width, lanes, out.at, out.stride);
      deliver(panel, y, step, steps, out, out_buffer);
    });
    if (all_regular<T>(p, args.tau, panel.vector(0), panel.live)) return;
    for (int c = 0; c < panel.live; ++c) {
      double tau = at(args.tau, panel.vector(c));
      if (!regular<T>(p[c], d[c], tau)) project_irregular(panel, x, y, c, p[c], d[c], tau);
    }
  });
}

}  // namespace

void threshold(const ThresholdArgs& args, int threads) { HYPERSIMPLEX_DISPATCH(args.dtype, project, args, threads); }

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
