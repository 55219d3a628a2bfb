// The HyperSimplex loss, fused. Forward: a team per class, or per classes side by side, counts the labels, finds the
// thresholds, and sums the loss in one more sweep; a last small kernel adds the classes up. Backward: one pass that
// reads logits and targets again and writes the gradient. Between them only numbers per class are kept.
#include "../loss_state.h"
#include "launch.cuh"
#include "loss_sums.cuh"

namespace hypersimplex {
namespace cuda {
namespace {

// Left by the classes for the last kernel, [C] each: their losses, and the weights of the samples that take part.
struct Summands {
  double *losses, *weights;
};

// ---- forward ----

template <class In>
__global__ void __launch_bounds__(tuning::kMaxThreads, 1)
    loss_team(const __grid_constant__ LossArgs args, const __grid_constant__ Plan plan, Summands summands,
              void* workspace) {
  using T = Compute<In>;
  const bool fenchel_young = args.kind == LossKind::kFenchelYoung;
  Team team(plan, workspace);
  LossVectorState<T>& own = team.states<LossVectorState<T>>()[team.column()];
  for (int number = team.number(); number < plan.tiles; number += plan.teams) {
    if (team.decides()) {
      own.begin(locate(plan, args.shape, number, team.column()), plan.n, args.k, args.tau);
      own.cancelled = 0;
    }
    block_barrier();
    const Tile<In, false> tile(plan, team, own.index.live, team.bytes<LossVectorState<T>>());
    {
      const Samples<In> samples(args, plan, tile, own.index, false);
      Sums<2, 2> counts;
      add_counts(args, samples, tile, counts);
      const auto total = team.reduce(counts, true);
      team.decide([&] {
        own.take_counts(args, samples, total);
        if (own.index.live && team.rank() == 0)
          LossState(args.state, args.shape.inner).taking_part[own.index.vector] = total.count(1);
        return 0;
      });
    }
    const LabelledSamples<In> samples(args, plan, tile, own.index, own.some_ignored);
    Solver<In, Tile<In, false>, Samples<In>>(team, tile, own, samples).solve();

    // A second turn sums up anew, in double, where a vector's loss has been cancelled. It cancels none, so it is the
    // last.
    int again = 0;
    do {
      Sums<2, 3> sums;
      sum_loss(samples, tile, own, fenchel_young, sums);
      const auto total = team.reduce(sums, true);
      again = team.decide([&] {
        if (!own.index.live) return 0;
        const Pair t = own.search.t;
        const double balance = fenchel_young && !is_balanced(args) ? total.sum(2) : 0;
        const double shift = threshold_shift(t, own.tau, balance), loss = total.sum(1) + shift;
        own.cancelled = !own.cancelled && is_cancelled(loss, shift);
        if (own.cancelled || team.rank() != 0) return own.cancelled;
        const LossState state(args.state, args.shape.inner);
        const int64_t c = own.index.vector;
        state.p[c] = t.p;
        state.d[c] = t.d;
        state.active[c] = total.count(0);
        state.mean[c] = mean_of_active(total.sum(0), total.count(0));
        state.k[c] = own.mass;
        summands.losses[c] = loss;
        summands.weights[c] = own.weight;
        return 0;
      });
      block_barrier();
    } while (again);
  }
  team.leave();
}

// loss = scale * sum_c w_c loss_c, by one block.
template <class In>
__global__ void __launch_bounds__(tuning::kPassThreads)
    add_classes(const __grid_constant__ LossArgs args, const __grid_constant__ Plan plan, Summands summands, In* loss) {
  Team team(plan, nullptr);
  Sums<2, 2> own;
  for (int64_t c = threadIdx.x; c < args.shape.inner; c += blockDim.x) {
    const double weight = args.weight ? args.weight[c] : 1;
    own.sum[0] += weight * summands.losses[c];
    own.sum[1] += weight * summands.weights[c];
  }
  const auto total = team.reduce(own, true);
  if (!team.decides()) return;
  const double weights = total.sum(1);
  const double scale = loss_scale(args.reduction, weights);
  *LossState(args.state, args.shape.inner).scale = scale;
  *loss = narrow<In>(Compute<In>(reduced_loss(args.reduction, total.sum(0), weights, scale)));
}

// ---- backward ----

// Of a class, in the compute type and, for what that cannot express, in double.
template <class T>
struct alignas(16) GradientVectorState {
  VectorIndex index;
  Projector<T> projector;
  T mean, gain, lambda;
  double wide_mean, wide_gain, wide_lambda;

  __device__ void set(const LossArgs& args, const VectorIndex& which, double upstream) {
    index = which;
    const LossState state(args.state, args.shape.inner);
    const int64_t c = index.live ? index.vector : 0;
    const Pair t = {state.p[c], state.d[c]};
    const double tau = at(args.tau, c);
    projector.set(t, tau);
    wide_gain = gradient_gain(args, upstream, tau, c);
    wide_mean = state.mean[c];
    wide_lambda = finite_lambda(t, tau);
    mean = T(wide_mean);
    gain = T(wide_gain);
    lambda = T(wide_lambda);
  }
};

// g = gain { squared: 1_A (s r - mean);  Fenchel-Young: s r + 1_A lambda (s - mean), 0 where x is infinite }
template <class In>
__global__ void __launch_bounds__(tuning::kPassThreads)
    loss_gradient(const __grid_constant__ LossArgs args, const __grid_constant__ LossBackward backward,
                  const __grid_constant__ Plan plan) {
  using T = Compute<In>;
  const bool fenchel_young = args.kind == LossKind::kFenchelYoung;
  const Team team(plan, nullptr);
  GradientVectorState<T>& own = shared_memory<GradientVectorState<T>>(0)[team.column()];
  if (team.decides()) {
    const double upstream = widen(*static_cast<const In*>(backward.grad_output));
    const double scale = *LossState(args.state, args.shape.inner).scale;
    own.set(args, locate(plan, args.shape, team.number(), team.column()), upstream * scale * (fenchel_young ? 1 : 2));
  }
  block_barrier();
  const Tile<In, false> tile(plan, team, own.index.live, 0);
  const LabelledSamples<In> samples(args, plan, tile, own.index, false);
  const Operand<In> grad(static_cast<In*>(backward.grad), backward.grad_strides, args.shape, plan, own.index,
                         tile.begin());
  if (own.projector.regular) {
    const Projector<T> projector = own.projector;
    const T mean = own.mean, gain = own.gain, lambda = fenchel_young && samples.weighted() ? own.lambda : T(0);
    tile.pass(
        samples,
        [&](int i, auto& x, const auto& beside, int u) {
          const T s = beside.s[u], sr = s * (projector.y(x[0]) - beside.t[u]);
          const bool active = projector.active(x[0]);
          const T share = active ? lambda * (s - mean) : T(0);
          const bool counts = fenchel_young ? is_finite(x[0]) : active;
          x[0] = counts ? gain * (fenchel_young ? sr + share : sr - mean) : T(0);
          tile.store(grad, i, x);
        },
        [] {});
  } else {
    tile.each_singly([&](int i) {
      const auto sample = samples.one(i);
      const bool active = own.projector.active(sample.x);
      const double s = sample.s, sr = s * (own.projector.irregular_y(sample.x) - double(sample.t));
      double value = 0;
      if (own.projector.p != own.projector.p)
        value = own.projector.p;
      else if (!fenchel_young)
        value = active ? own.wide_gain * (sr - own.wide_mean) : 0;
      else if (is_finite(sample.x))
        value = own.wide_gain * (sr + (active ? own.wide_lambda * (s - own.wide_mean) : 0));
      tile.store(grad, i, {T(value)});
    });
  }
}

// ---- launches ----

Plan forward_plan(LossArgs& args) {
  Layout layout(
      args.shape, args.dtype,
      {{args.x, &args.x_strides}, {args.target, &args.target_strides, args.target_kind == TargetKind::kDense}});
  size_t state_bytes = args.dtype == DType::kFloat64 ? sizeof(LossVectorState<double>) : sizeof(LossVectorState<float>);
  const void* kernel = for_storage_type(
      args.dtype, [](auto storage) { return address_of(loss_team<typename decltype(storage)::type>); });
  return Planner(layout.problem(state_bytes), device_limits(kernel)).choose(false);
}

Plan backward_plan(LossArgs& args, LossBackward& backward) {
  Layout layout(args.shape, args.dtype,
                {{args.x, &args.x_strides},
                 {args.target, &args.target_strides, args.target_kind == TargetKind::kDense},
                 {backward.grad, &backward.grad_strides}});
  size_t state_bytes =
      args.dtype == DType::kFloat64 ? sizeof(GradientVectorState<double>) : sizeof(GradientVectorState<float>);
  return Planner(layout.problem(state_bytes), device_limits()).elementwise();
}

}  // namespace

size_t loss_forward_workspace(const LossArgs& call) {
  LossArgs args = call;
  return GridWorkspace::bytes(forward_plan(args)) + 2 * size_t(args.shape.inner) * sizeof(double);
}

void loss_forward(const LossArgs& call, void* loss, void* workspace, void* stream) {
  LossArgs args = call;
  const Plan plan = forward_plan(args);
  double* numbers = reinterpret_cast<double*>(static_cast<char*>(workspace) + GridWorkspace::bytes(plan));
  const Summands summands = {numbers, numbers + args.shape.inner};
  const Plan total = one_block_plan();
  for_storage_type(args.dtype, [&](auto storage) {
    using In = typename decltype(storage)::type;
    launch(plan, stream, "loss_forward", loss_team<In>, args, plan, summands,
           prepare_workspace(plan, workspace, stream));
    launch(total, stream, "loss_forward", add_classes<In>, args, total, summands, static_cast<In*>(loss));
  });
}

void loss_backward(const LossArgs& call, const LossBackward& results, void* stream) {
  LossArgs args = call;
  LossBackward backward = results;
  const Plan plan = backward_plan(args, backward);
  for_storage_type(args.dtype, [&](auto storage) {
    using In = typename decltype(storage)::type;
    launch(plan, stream, "loss_backward", loss_gradient<In>, args, backward, plan);
  });
}

}  // namespace cuda
}  // namespace hypersimplex
