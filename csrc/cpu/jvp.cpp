// The Jacobian product of the projection, out = 1_A (v - mean_A v) / tau: one sweep for the sums over the active set A,
// one that writes.
#include "isa_launchers.h"
#include "solve.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {
namespace {

// |A|, sum_A v, sum_A v y, sum_A y of one vector.
struct ActiveSums {
  double active, v, product, y;
  double mean() const { return active == 0 ? 0 : v / active; }
  double grad_tau(double tau) const { return -(product - mean() * y) / tau; }
};

// A vector that lanes.h cannot express, entry by entry.
template <class In>
ActiveSums multiply_irregular(const Panel& panel, const Operand<const In>& x, const Operand<const In>& v, In* out,
                              const Strides& out_strides, int column, Pair t, double tau) {
  using T = Compute<In>;
  const Shape& shape = panel.plan.shape;
  Operand<In> to(out, out_strides, panel);
  ActiveSums sums{};
  auto project = [&](int64_t j) { return project_entry(load(*x.entry(shape, column, j)), t.p, t.d, tau); };
  for (int64_t j = 0; j < panel.plan.n; ++j) {
    double y = project(j), tangent = load(*v.entry(shape, column, j));
    if (!(y > 0 && y < 1)) continue;
    sums.active += 1;
    sums.v += tangent;
    sums.product += tangent * y;
    sums.y += y;
  }
  if (t.p != t.p) sums.v = sums.product = sums.active = t.p;
  for (int64_t j = 0; out && j < panel.plan.n; ++j) {
    double y = project(j), tangent = load(*v.entry(shape, column, j));
    double product = y > 0 && y < 1 ? (tangent - sums.mean()) / tau : 0;
    store(T(t.p != t.p ? t.p : product), *to.entry(shape, column, j));
  }
  return sums;
}

template <class In>
void multiply(const JvpArgs& args, int threads) {
  using T = Compute<In>;
  const Plan plan = make_plan(args.shape, args.x_strides, kMaxLanes);
  for_each_panel(plan, threads, [&](const Panel& panel, int inner_threads) {
    Operand<const In> x(static_cast<const In*>(args.x), args.x_strides, panel);
    Operand<const In> v(static_cast<const In*>(args.v), args.v_strides, panel);
    int64_t first = panel.vector(0);
    const double *p = args.state.p + first, *d = args.state.d + first;
    Lanes<T> lanes;
    set_lanes(lanes, panel, args.state, args.tau);

    LaneSums total;
    sweep(plan, inner_threads, total, [&](int64_t step, int64_t steps, LaneSums& out) {
      alignas(64) T x_buffer[kBlock], v_buffer[kBlock];
      View<const T> in = fetch(panel, x, step, steps, -T(HUGE_VAL), x_buffer);
      View<const T> tangent = fetch(panel, v, step, steps, T(0), v_buffer);
      if (args.grad_tau)
        sweep_jvp_sums<true>(in.at, tangent.at, steps, in.stride, tangent.stride, plan.width, lanes, out);
      else
        sweep_jvp_sums<false>(in.at, tangent.at, steps, in.stride, tangent.stride, plan.width, lanes, out);
    });
    ActiveSums sums[kMaxLanes];
    for (int c = 0; c < plan.columns; ++c) {
      sums[c] = {total.a[c], total.b[c], total.c[c], total.e[c]};
      lanes.mean[c] = T(sums[c].mean());
    }
    repeat(lanes.mean, plan.width, plan.columns);

    if (args.out) {
      Operand<In> result(static_cast<In*>(args.out), args.out_strides, panel);
      for_each_chunk(plan, inner_threads, [&](int64_t step, int64_t steps) {
        alignas(64) T x_buffer[kBlock], v_buffer[kBlock], out_buffer[kBlock];
        View<const T> in = fetch(panel, x, step, steps, -T(HUGE_VAL), x_buffer);
        View<const T> tangent = fetch(panel, v, step, steps, T(0), v_buffer);
        View<T> out = destination(panel, result, step, steps, out_buffer);
        sweep_jvp_write(in.at, tangent.at, steps, in.stride, tangent.stride, plan.width, lanes, out.at, out.stride);
        deliver(panel, result, step, steps, out, out_buffer);
      });
    }
    for (int c = 0; c < panel.live; ++c) {
      double tau = at(args.tau, first + c);
      if (p[c] != p[c] || (p[c] - p[c] == 0 && !regular<T>(p[c], d[c], tau)))
        sums[c] = multiply_irregular(panel, x, v, static_cast<In*>(args.out), args.out_strides, c, {p[c], d[c]}, tau);
      if (args.grad_k) args.grad_k[first + c] = sums[c].mean();
      if (args.grad_tau) args.grad_tau[first + c] = sums[c].grad_tau(tau);
    }
  });
}

}  // namespace

void jvp(const JvpArgs& args, int threads) { HYPERSIMPLEX_DISPATCH(args.dtype, multiply, args, threads); }

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
