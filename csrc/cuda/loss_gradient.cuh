// The gradient of the loss: one pass that reads logits and targets and writes it, of one class a thread or, where rows
// of logits can be accessed in packs, of several side by side.
#pragma once

#include "projector.cuh"
#include "samples.cuh"
#include "wide_samples.cuh"

namespace hypersimplex {
namespace cuda {

// g = gain { squared: 1_A (s r - mean);  Fenchel-Young: s r + 1_A lambda (s - mean), 0 where x is infinite },  r = y -
// t, of a class whose y can be formed in T.
template <class T>
struct ClassGradient {
  T p, d, rate, floor, ceiling, mean, gain, lambda;

  __device__ __forceinline__ T of(bool fenchel_young, T x, T t, T s) const {
    const T sr = s * (clip01(((x - p) - d) * rate) - t);
    const bool active = x > floor && x < ceiling;
    if (!fenchel_young) return active ? gain * (sr - mean) : T(0);
    return is_finite(x) ? gain * (sr + (active ? lambda * (s - mean) : T(0))) : T(0);
  }
};

// Of a class, in the compute type and, for what that cannot express, in double.
template <class T>
struct alignas(16) GradientVectorState {
  VectorIndex index;
  Projector<T> projector;
  double mean, gain, lambda;

  __device__ void set(const LossArgs& args, const VectorIndex& which, double upstream) {
    index = which;
    const LossState state(args.state, args.shape.inner);
    const int64_t c = index.live ? index.vector : 0;
    const Pair t = {state.p[c], state.d[c]};
    const double tau = at(args.tau, c);
    projector.set(t, tau);
    gain = gradient_gain(args, upstream, tau, c);
    mean = state.mean[c];
    lambda = finite_lambda(t, tau);
  }
  __device__ ClassGradient<T> in_compute_type(bool weighted) const {
    return {projector.p,       projector.d, projector.rate, projector.floor,
            projector.ceiling, T(mean),     T(gain),        weighted ? T(lambda) : T(0)};
  }
  // The same as ClassGradient::of(), in double.
  __device__ T in_double(bool fenchel_young, T x, T t, T weight) const {
    if (projector.p != projector.p) return projector.p;
    const bool active = projector.active(x);
    const double s = weight, sr = s * (projector.irregular_y(x) - double(t));
    if (!fenchel_young) return T(active ? gain * (sr - mean) : 0);
    return is_finite(x) ? T(gain * (sr + (active ? lambda * (s - mean) : 0))) : T(0);
  }
};

// What both kernels begin with: the states of a tile's classes, in shared memory.
template <class In>
__device__ __forceinline__ GradientVectorState<Compute<In>>* take_classes(const LossArgs& args,
                                                                          const LossBackward& backward,
                                                                          const Plan& plan, const Team& team) {
  auto* states = shared_memory<GradientVectorState<Compute<In>>>(0);
  if (team.decides()) {
    const double upstream = widen(*static_cast<const In*>(backward.grad_output));
    const double scale = *LossState(args.state, args.shape.inner).scale, factor = is_fenchel_young(args) ? 1 : 2;
    states[team.column()].set(args, locate(plan, args.shape, team.number(), team.column()), upstream * scale * factor);
  }
  block_barrier();
  return states;
}

template <class In>
__global__ void __launch_bounds__(tuning::kPassThreads)
    loss_gradient(const __grid_constant__ LossArgs args, const __grid_constant__ LossBackward backward,
                  const __grid_constant__ Plan plan) {
  using T = Compute<In>;
  const bool fenchel_young = is_fenchel_young(args);
  const Team team(plan, nullptr);
  const GradientVectorState<T>& own = take_classes<In>(args, backward, plan, team)[team.column()];
  const Tile<In, false> tile(plan, team, own.index.live, 0);
  const LabelledSamples<In> samples(args, plan, tile, own.index, false);
  const Operand<In> to(static_cast<In*>(backward.grad), backward.grad_strides, args.shape, plan, own.index,
                       tile.begin());
  if (own.projector.regular) {
    const ClassGradient<T> gradient = own.in_compute_type(samples.weighted());
    tile.pass(
        samples,
        [&](int i, auto& x, const auto& beside, int u) {
          x[0] = gradient.of(fenchel_young, x[0], beside.t[u], beside.s[u]);
          tile.store(to, i, x);
        },
        [] {});
  } else {
    tile.each_singly([&](int i) {
      const auto sample = samples.one(i);
      tile.store(to, i, {own.in_double(fenchel_young, sample.x, sample.t, sample.s)});
    });
  }
}

// The same for packs of classes.
template <class In>
__global__ void __launch_bounds__(tuning::kPassThreads)
    loss_gradient_wide(const __grid_constant__ LossArgs args, const __grid_constant__ LossBackward backward,
                       const __grid_constant__ Plan plan) {
  using T = Compute<In>;
  constexpr int kWide = WideTile<In, false>::kWide;
  const bool fenchel_young = is_fenchel_young(args);
  const Team team(plan, nullptr);
  const auto* own = take_classes<In>(args, backward, plan, team) + (int(threadIdx.x) * kWide & (plan.columns - 1));
  const WideTile<In, false> tile(plan, team, own[0].index.live, 0);
  const WideLabelledSamples<In, false> samples(args, plan, tile, own[0].index, false);
  const Operand<In> to(static_cast<In*>(backward.grad), backward.grad_strides, args.shape, plan, own[0].index,
                       tile.begin());
  ClassGradient<T> gradients[kWide];
  bool regular = true;
#pragma unroll
  for (int v = 0; v < kWide; ++v) {
    gradients[v] = own[v].in_compute_type(samples.weighted());
    regular = regular && own[v].projector.regular;
  }
  auto write = [&](int i, auto& x, const auto& beside, int u, auto gradient_of) {
#pragma unroll
    for (int v = 0; v < kWide; ++v) x[v] = gradient_of(v, x[v], samples.target(beside, u, v), beside.s[u]);
    tile.store(to, i, x);
  };
  if (regular) {
    auto pass = [&](auto kind) {
      tile.pass(
          samples,
          [&](int i, auto& x, const auto& beside, int u) {
            write(i, x, beside, u, [&](int v, T x, T t, T s) { return gradients[v].of(kind.value, x, t, s); });
          },
          [] {});
    };
    if (fenchel_young)
      pass(Constant<true>{});
    else
      pass(Constant<false>{});
  } else {
    tile.each_singly(samples, [&](int i, auto& x, const auto& beside, int u) {
      write(i, x, beside, u, [&](int v, T x, T t, T s) {
        return own[v].projector.regular ? gradients[v].of(fenchel_young, x, t, s)
                                        : own[v].in_double(fenchel_young, x, t, s);
      });
    });
  }
}

}  // namespace cuda
}  // namespace hypersimplex
