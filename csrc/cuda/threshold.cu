// The projection y = clip((x - t) / tau, 0, 1) of every vector onto the (n,k)-hypersimplex, Eq. 4.3 of the paper,
// without a sort. A warp or part of one holds a short vector in registers; a block or a cluster holds longer ones in
// shared memory; the blocks of a grid read still longer ones again for every sweep. One pass gives the moments and with
// them the first guess at t, about three sweeps settle it (csrc/newton.h), one pass writes y. Of the longest vectors a
// sample saves most of the sweeps: long_vectors.cu.
#include "long_vectors.cuh"
#include "register_rows.cuh"
#include "solver.cuh"

namespace hypersimplex {
namespace cuda {
namespace {

constexpr int kStepsToTrust = 2;

// Finds the threshold of the vector whose entries x a group of lanes holds, and leaves it in state.search.t and
// state.projector.
template <class In>
__device__ __forceinline__ void solve_short(const RegisterRows<In>& rows, const typename RegisterRows<In>::Items& x,
                                            VectorState<Compute<In>>& state, int n) {
  using T = Compute<In>;
  const LaneGroup lanes = rows.lanes();
  const T first = rows.first(x);
  Moments<T> moments;
  moments.begin(is_finite(first) ? first : T(0));
  // All entries as if they were finite, which the sum tells afterwards; then, seldom, those that are.
  if (rows.full()) rows.for_items([&](int i) { moments.add(x[i]); });
  if (any_lane(!rows.full() || !is_finite(moments.sum))) {
    moments.begin(moments.origin);
    rows.for_items([&](int i) {
      if (is_finite(x[i])) moments.add(x[i]);
    });
  }
  const unsigned finite = sum(moments.count, lanes);
  const T mean = sum(moments.sum, lanes) / T(finite);
  const T variance = sum(moments.squares, lanes) / T(finite) - mean * mean;
  state.count = finite;
  state.mean = double(moments.origin) + double(mean);
  state.variance = variance > 0 ? variance : T(0);
  state.low = smallest(moments.low, lanes);
  state.high = largest(moments.high, lanes);
  state.infinite = state.nan = 0;
  if (any_lane(rows.index.live && int(finite) < n)) {
    unsigned special = 0;  // +inf in the lower half, nan in the upper
    rows.for_items([&](int i) { special += x[i] == kInfinity<T> ? 1u : x[i] != x[i] ? 1u << 16 : 0u; });
    special = sum(special, lanes);
    state.infinite = special & 0xffff;
    state.nan = special >> 16;
  }
  state.start();

  auto take_gap = [&](bool wanted) {
    if (!any_lane(wanted)) return;
    const T edge = state.gap_edge();
    T zero = -kInfinity<T>, one = kInfinity<T>;
    rows.for_items([&](int i) { take_side(x[i], edge, zero, one); });
    zero = largest(zero, lanes);
    one = smallest(one, lanes);
    if (wanted) state.take_gap(zero, one);
  };
  // Before each turn search.t is where the next sweep is due, and is the same in all lanes of a group. Groups that have
  // settled go along, as a warp exchanges numbers only together; step_to_end() ends every search.
  while (any_lane(state.searching())) {
    state.projector.aim(state.search.t, state.tau);
    Counter<T> counter;
    counter.aim(state.projector);
    // After two steps t is the root more often than not, which counts alone tell.
    if (!any_lane(state.searching() && state.search.steps < kStepsToTrust)) {
      rows.for_items([&](int i) { counter.count(x[i]); });
      const unsigned counts = sum(counter.counts, lanes);
      if (state.searching()) state.search.confirmed(counter.above(counts), counter.ones(counts));
      if (!any_lane(state.searching())) break;
      counter.aim(state.projector);
    }
    rows.for_items([&](int i) { counter.add(x[i]); });
    const unsigned counts = sum(counter.counts, lanes);
    const double S = sum(double(counter.sum), lanes);
    if (state.searching()) state.search.step_to_end({double(counter.above(counts)), double(counter.ones(counts)), S});
    take_gap(state.searching() && state.search.flat != 0);
  }
  state.projector.aim(state.search.t, state.tau);
  take_gap(state.in_gap());
  state.projector.set(state.search.t, state.tau);
}

template <class In>
__global__ void __launch_bounds__(tuning::kShortThreads)
    project_short(const __grid_constant__ ThresholdArgs args, const __grid_constant__ Plan plan) {
  using T = Compute<In>;
  const RegisterRows<In> rows(plan, args.shape);
  if (!rows.exists()) return;
  const VectorIndex& index = rows.index;
  typename RegisterRows<In>::Items x;
  rows.load(static_cast<const In*>(args.x), args.x_strides, x, -kInfinity<T>);
  VectorState<T> state;
  state.begin(index, plan.n, args.k, args.tau);
  solve_short(rows, x, state, int(plan.n));
  if (index.live && rows.slot == 0) {
    args.state.p[index.vector] = state.search.t.p;
    args.state.d[index.vector] = state.search.t.d;
  }
  if (!args.y) return;
  const Projector<T>& projector = state.projector;
  if (projector.regular)
    rows.for_items([&](int i) { x[i] = projector.y(x[i]); });
  else
    rows.for_items([&](int i) { x[i] = T(projector.irregular_y(x[i])); });
  rows.store(static_cast<In*>(args.y), args.y_strides, x);
}

template <class In>
__global__ void __launch_bounds__(tuning::kMaxThreads)
    project_team(const __grid_constant__ ThresholdArgs args, const __grid_constant__ Plan plan, void* workspace) {
  using T = Compute<In>;
  Team team(plan, workspace);
  VectorState<T>& own = team.states<VectorState<T>>()[team.column()];
  for (int number = team.number(); number < plan.tiles; number += plan.teams) {
    if (team.decides()) own.begin(locate(plan, args.shape, number, team.column()), plan.n, args.k, args.tau);
    block_barrier();
    const Tile<In> tile(plan, team, own.index.live, team.bytes<VectorState<T>>());
    const Operand<const In> x(static_cast<const In*>(args.x), args.x_strides, args.shape, plan, own.index,
                              tile.begin());
    const Entries<In, Tile<In>> entries{tile, x, -kInfinity<T>};
    Solver<In, Tile<In>, Entries<In, Tile<In>>>(team, tile, own, &own, entries).solve();

    if (team.rank() == 0 && team.decides() && own.index.live) {
      args.state.p[own.index.vector] = own.search.t.p;
      args.state.d[own.index.vector] = own.search.t.d;
    }
    if (args.y) {
      const Operand<In> y(static_cast<In*>(args.y), args.y_strides, args.shape, plan, own.index, tile.begin());
      write_projection(tile, entries, own.projector, y);
    }
    block_barrier();
  }
  team.leave();
}

Plan plan_of(ThresholdArgs& args) {
  Layout layout(args.shape, args.dtype, {{args.x, &args.x_strides}, {args.y, &args.y_strides}});
  size_t state_bytes = args.dtype == DType::kFloat64 ? sizeof(VectorState<double>) : sizeof(VectorState<float>);
  const void* kernel = for_storage_type(
      args.dtype, [](auto storage) { return address_of(project_team<typename decltype(storage)::type>); });
  const Problem problem = layout.problem(state_bytes);
  const Planner planner(problem, device_limits(kernel));
  return planner.with_lists(planner.choose(true), long_state_bytes(args.dtype));
}

}  // namespace

size_t threshold_workspace(const ThresholdArgs& call) {
  ThresholdArgs args = call;
  return GridWorkspace::bytes(plan_of(args));
}

void threshold(const ThresholdArgs& call, void* workspace, void* stream) {
  ThresholdArgs args = call;
  const Plan plan = plan_of(args);
  if (plan.list_bytes) return long_threshold(args, plan, workspace, stream);
  for_storage_type(args.dtype, [&](auto storage) {
    using In = typename decltype(storage)::type;
    if (plan.regime == Regime::kShort)
      launch(plan, stream, "threshold", project_short<In>, args, plan);
    else
      launch(plan, stream, "threshold", project_team<In>, args, plan, prepare_workspace(plan, workspace, stream));
  });
}

}  // namespace cuda
}  // namespace hypersimplex
