// The sums over a class that its loss comes from, as the threads of a tile take them.
#pragma once

#include "samples.cuh"
#include "solver.cuh"

namespace hypersimplex {
namespace cuda {

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
    if (!this->index.live) return;
    this->mass = class_mass(args, this->index.vector, samples.dense() ? total.sum(0) : total.count(0), taking_part);
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

}  // namespace cuda
}  // namespace hypersimplex
