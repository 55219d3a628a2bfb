// The HyperSimplex loss, fused. Forward: a team per class, or per classes side by side, counts the labels, finds the
// thresholds, and sums the loss in one more sweep; a last small kernel adds the classes up. Backward: one pass that
// reads logits and targets again and writes the gradient. Between them only numbers per class are kept.
#include "../loss_state.h"
#include "launch.cuh"
#include "samples.cuh"
#include "solver.cuh"

namespace hypersimplex {
namespace cuda {
namespace {

// Left by the classes for the last kernel, [C] each: their losses, and the weights of the samples that take part.
struct Summands {
  double *losses, *weights;
};

// ---- forward ----

// Of a class: what the loss needs beside the threshold.
template <class T>
struct LossVectorState : VectorState<T> {
  double weight;  // of the samples that take part
  int some_ignored;
  int cancelled;  // whether nothing was left of the summands of the loss

  // From the counts and sums of add_counts().
  template <class In>
  __device__ void take_counts(const LossArgs& args, const Samples<In>& samples, const Totals<2, 2>& total) {
    const double taking_part = total.count(1);
    weight = samples.weighted() ? total.sum(1) : taking_part;
    some_ignored = taking_part < this->n;
    if (!this->index.live || args.mass_kind == MassKind::kValue) return;
    if (args.mass_kind == MassKind::kFraction) {
      this->mass = whole_part(args.k.value, taking_part);
    } else {
      const double targets = samples.dense() ? total.sum(0) : total.count(0);
      this->mass = args.label_smoothing == 0 ? targets : samples.keep() * targets + samples.off() * taking_part;
    }
  }
};

// What counting reads, and no logits: labels or dense targets, and weights.
template <class In, bool kDense>
class Counted : public Samples<In> {
 public:
  using T = Compute<In>;
  __device__ explicit Counted(const Samples<In>& samples) : Samples<In>(samples) {}

  template <int U, int N>
  struct Beside {
    int64_t labels[U];
    T rows[U][N];
    double s[U];
  };
  template <int U>
  __device__ __forceinline__ void read_beside(int i, int step, T (&)[U][1], Beside<U, 1>& beside) const {
    if constexpr (kDense)
      this->read_rows(i, step, beside.rows);
    else
      this->read_labels(i, step, beside.labels);
    this->read_weights(i, step, beside.s);
  }
};

// The samples that bear the class's label, those that take part, and the sums of dense targets and of weights.
template <class In>
__device__ __forceinline__ void add_counts(const LossArgs& args, const Samples<In>& samples,
                                           const Tile<In, false>& tile, Sums<2, 2>& own) {
  if (samples.dense()) {
    const Compute<In> ignored = samples.ignored_label();
    tile.pass_beside(Counted<In, true>(samples), [&](int, const auto& beside, int u) {
      if (beside.rows[u][0] == ignored) return;
      own.sum[0] += double(beside.rows[u][0]);
      ++own.count[1];
      own.sum[1] += beside.s[u];
    });
    return;
  }
  bool out_of_range = false;
  tile.pass_beside(Counted<In, false>(samples), [&](int, const auto& beside, int u) {
    const int64_t label = beside.labels[u];
    if (label == args.ignore_index) return;
    out_of_range |= label < 0 || label >= args.shape.inner;
    own.count[0] += label == samples.vector();
    ++own.count[1];
    own.sum[1] += beside.s[u];
  });
  assert(!out_of_range && "class index out of range");
}

// The sums over one class that loss and gradient come from. r = y - t, s the sample weight, u = (x - threshold) / tau:
// |A|, sum_A s r (squared) or sum_A s (Fenchel-Young), the sum of s times
//     squared:        r^2
//     Fenchel-Young:  r (u - (y + t) / 2)
// and sum s r, so that  sum s ((z - t)^2 / 2 - (z - y)^2 / 2) = third + lambda fourth.  Where r = 0 nothing is added,
// be u infinite.
template <class In>
__device__ __forceinline__ void sum_loss(const LabelledSamples<In>& samples, const Tile<In, false>& tile,
                                         const LossVectorState<Compute<In>>& state, bool fenchel_young,
                                         Sums<2, 3>& own) {
  using T = Compute<In>;
  if (state.projector.regular && !state.cancelled && !(fenchel_young && fabs(state.projector.p) == kInfinity<T>)) {
    const Projector<T> projector = state.projector;
    T mean = 0, loss = 0, balance = 0;
    tile.pass(
        samples,
        [&](int, const auto& x, const auto& beside, int item) {
          const T t = beside.t[item], s = beside.s[item];
          const bool active = projector.active(x[0]);
          const T u = projector.position(x[0]), y = clip01(u), r = y - t, sr = s * r;
          own.count[0] += active;
          if (active) mean += fenchel_young ? s : sr;
          if (fenchel_young) {
            if (r != 0) loss += sr * (u - T(0.5) * (y + t));
            balance += sr;
          } else {
            loss += sr * r;
          }
        },
        [&] {
          own.sum[0] += double(mean);
          own.sum[1] += double(loss);
          own.sum[2] += double(balance);
          mean = loss = balance = 0;
        });
  } else {  // in double, and with z = x / tau for u: what T, or a threshold far from all logits, cannot express
    tile.each_singly([&](int i) {
      const auto sample = samples.one(i);
      const double x = sample.x, t = sample.t, s = sample.s;
      const bool active = state.projector.active(sample.x);
      const double y = state.projector.irregular_y(sample.x), r = y - t, z = state.projector.by_tau(x);
      own.count[0] += active;
      if (active) own.sum[0] += fenchel_young ? s : s * r;
      if (r != 0) own.sum[1] += s * (fenchel_young ? r * (z - 0.5 * (y + t)) : r * r);
    });
  }
}

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
