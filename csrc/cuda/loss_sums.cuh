// The sums over a class that its loss comes from, as the threads of a tile take them.
#pragma once

#include "samples.cuh"
#include "solver.cuh"
#include "wide_samples.cuh"

namespace hypersimplex {
namespace cuda {

// Of a class: what the loss needs beside the threshold. The sweep that sums the loss up confirms a threshold that is
// likely the root; where it does not, it was in vain, and the class guesses no more.
template <class T>
struct LossVectorState : VectorState<T> {
  static constexpr bool kGuesses = true;
  double taking_part;  // number of samples that are not ignored
  double weight;       // of the samples that take part
  int some_ignored;
  int cancelled;  // whether nothing was left of the summands of the loss
  int guessed;    // whether a guess has been tried

  __device__ bool guesses() const { return this->searching() && !guessed && this->search.nearly_found(); }

  // The sum of the class's targets, the number of samples that take part, and what these weigh.
  __device__ __attribute__((noinline)) void take_counts(const LossArgs& args, double targets, double number,
                                                        double weights) {
    taking_part = number;
    weight = args.sample_weight ? weights : number;
    some_ignored = number < this->n;
    if (this->index.live) this->mass = class_mass(args, this->index.vector, targets, number);
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

// The number of samples that take part, the sums of their dense targets and of their weights.
template <class In>
__device__ __forceinline__ void add_dense_counts(const Samples<In>& samples, const Tile<In, false>& tile,
                                                 Sums<2, 2>& own) {
  const Compute<In> ignored = samples.ignored_label();
  tile.pass_beside(Counted<In, true>(samples), [&](int, const auto& beside, int u) {
    if (beside.rows[u][0] == ignored) return;
    own.sum[0] += double(beside.rows[u][0]);
    ++own.count[1];
    own.sum[1] += beside.s[u];
  });
}
// The same, and where targets are class indices the number of samples that bear the class's label.
template <class In>
__device__ __forceinline__ void add_counts(const LossArgs& args, const Samples<In>& samples,
                                           const Tile<In, false>& tile, Sums<2, 2>& own) {
  if (samples.dense()) return add_dense_counts(samples, tile, own);
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

// The sums over a class that loss and gradient come from. r = y - t, s the sample weight, u = (x - threshold) / tau:
// #{x > t} and #{x >= t + tau}, sum_A s r (squared) or sum_A s (Fenchel-Young), the sum of s times
//     squared:        r^2
//     Fenchel-Young:  r (u - (y + t) / 2)
// and sum s r, so that  sum s ((z - t)^2 / 2 - (z - y)^2 / 2) = third + lambda fourth.  Where r = 0 nothing is added,
// be u infinite.
using LossSums = Sums<2, 3>;

// Of one class, in T.
template <class T>
struct ClassLoss {
  T p, d, rate;
  Counter<T> counter;
  T mean, loss, balance;

  __device__ __forceinline__ void aim(const Projector<T>& at) {
    p = at.p;
    d = at.d;
    rate = at.rate;
    counter.aim(at);
    mean = loss = balance = 0;
  }
  __device__ __forceinline__ void add(bool fenchel_young, T x, T t, T s) {
    const T u = ((x - p) - d) * rate, y = clip01(u), r = y - t, sr = s * r;
    mean += counter.count(x) ? fenchel_young ? s : sr : T(0);
    if (fenchel_young) {
      loss += r != 0 ? sr * (u - T(0.5) * (y + t)) : T(0);
      balance += sr;
    } else {
      loss += sr * r;
    }
  }
  __device__ __forceinline__ void flush(LossSums& sums) {
    counter.flush_counts(sums);
    sums.sum[0] += double(mean);
    sums.sum[1] += double(loss);
    sums.sum[2] += double(balance);
    mean = loss = balance = 0;
  }
};

// In double, and with z = x / tau for u: what T, or a threshold far from all logits, cannot express.
template <class T>
__device__ __forceinline__ void add_in_double(const LossVectorState<T>& state, bool fenchel_young, T logit, T target,
                                              T weight, LossSums& own) {
  const double x = logit, t = target, s = weight;
  const bool active = state.projector.active(logit);
  const double y = state.projector.irregular_y(logit), r = y - t, z = state.projector.by_tau(x);
  const bool above = logit > state.projector.floor;
  own.count[0] += above;
  own.count[1] += above && !active;
  if (active) own.sum[0] += fenchel_young ? s : s * r;
  if (r != 0) own.sum[1] += s * (fenchel_young ? r * (z - 0.5 * (y + t)) : r * r);
}
template <class T>
__device__ __forceinline__ bool fits(const LossVectorState<T>& state, bool fenchel_young) {
  return state.projector.regular && !state.cancelled && !(fenchel_young && fabs(state.projector.p) == kInfinity<T>);
}

template <class In>
__device__ __forceinline__ void sum_loss(const LabelledSamples<In>& samples, const Tile<In, false>& tile,
                                         const LossVectorState<Compute<In>>* states, bool fenchel_young,
                                         LossSums (&own)[1]) {
  using T = Compute<In>;
  if (fits(*states, fenchel_young)) {
    ClassLoss<T> sums;
    sums.aim(states->projector);
    tile.pass(
        samples,
        [&](int, const auto& x, const auto& beside, int u) { sums.add(fenchel_young, x[0], beside.t[u], beside.s[u]); },
        [&] { sums.flush(own[0]); });
  } else {
    tile.each_singly([&](int i) {
      const auto sample = samples.one(i);
      add_in_double(*states, fenchel_young, sample.x, sample.t, sample.s, own[0]);
    });
  }
}

// Of several classes. Those that T cannot express are summed up anew, so that none depends on its neighbours.
template <class In, int V>
__device__ __forceinline__ void sum_loss(const WideLabelledSamples<In, true>& samples, const WideTile<In, true>& tile,
                                         const LossVectorState<Compute<In>>* states, bool fenchel_young,
                                         LossSums (&own)[V]) {
  using T = Compute<In>;
  ClassLoss<T> sums[V];
  bool all_fit = true;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    sums[v].aim(states[v].projector);
    all_fit = all_fit && fits(states[v], fenchel_young);
  }
  auto pass = [&](auto kind) {
    tile.pass(
        samples,
        [&](int, const auto& x, const auto& beside, int u) {
#pragma unroll
          for (int v = 0; v < V; ++v) sums[v].add(kind.value, x[v], samples.target(beside, u, v), beside.s[u]);
        },
        [&] {
#pragma unroll
          for (int v = 0; v < V; ++v) sums[v].flush(own[v]);
        });
  };
  if (fenchel_young)
    pass(Constant<true>{});
  else
    pass(Constant<false>{});
  if (all_fit) return;
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (!fits(states[v], fenchel_young)) own[v] = {};
  tile.each_singly(samples, [&](int, const auto& x, const auto& beside, int u) {
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (!fits(states[v], fenchel_young))
        add_in_double(states[v], fenchel_young, x[v], samples.target(beside, u, v), beside.s[u], own[v]);
  });
}

}  // namespace cuda
}  // namespace hypersimplex
