// The samples of a loss as the threads of a tile see them, class by class: logits with ignored samples or entries left
// out, targets from class indices or dense rows, label smoothing, sample weights. Class indices are never expanded.
#pragma once

#include "../loss_state.h"
#include "tile.cuh"

namespace hypersimplex {
namespace cuda {

__device__ __forceinline__ bool is_fenchel_young(const LossArgs& args) { return args.kind == LossKind::kFenchelYoung; }

template <class In>
class Samples {
 public:
  using T = Compute<In>;
  using TileType = Tile<In, false>;

  // some_ignored: whether targets have to be looked at to tell which logits take part
  __device__ Samples(const LossArgs& args, const Plan& plan, const TileType& tile, const VectorIndex& index,
                     bool some_ignored)
      : args_(args), plan_(plan), tile_(tile), index_(index), some_ignored_(some_ignored) {}

  __device__ bool dense() const { return args_.target_kind == TargetKind::kDense; }
  __device__ bool weighted() const { return args_.sample_weight != nullptr; }
  __device__ int64_t vector() const { return index_.vector; }
  __device__ T first(const VectorIndex&) const {
    return tile_.first(operand<const In>(args_.x, args_.x_strides, index_));
  }

  // What label smoothing makes of targets 0 and 1.
  __device__ double off() const { return smoothing_off(args_); }
  __device__ double keep() const { return 1 - args_.label_smoothing; }

  // The label of ignored entries among dense targets, rounded as these are.
  __device__ T ignored_label() const { return widen(narrow<In>(T(args_.ignore_index))); }

  // Logits; ignored ones take no part.
  template <int U>
  __device__ __forceinline__ void read(int i, int step, T (&x)[U][1]) const {
    tile_.load(operand<const In>(args_.x, args_.x_strides, index_), i, step, x, -kInfinity<T>);
    if (!some_ignored_) return;
    if (dense()) {
      T rows[U][1];
      read_rows(i, step, rows);
#pragma unroll
      for (int u = 0; u < U; ++u)
        if (rows[u][0] == ignored_label()) x[u][0] = -kInfinity<T>;
    } else {
      int64_t labels[U];
      read_labels(i, step, labels);
#pragma unroll
      for (int u = 0; u < U; ++u)
        if (labels[u] == args_.ignore_index) x[u][0] = -kInfinity<T>;
    }
  }

  // Nothing else is read beside them while the thresholds are sought.
  template <int U, int N>
  struct Beside {};
  template <int U>
  __device__ void read_beside(int, int, T (&)[U][1], Beside<U, 1>&) const {}

  template <int U>
  __device__ __forceinline__ void read_labels(int i, int step, int64_t (&labels)[U]) const {
    tile_.load_raw(operand<const int64_t>(args_.target, args_.target_strides, VectorIndex{}), i, step, labels);
  }
  // Dense targets without label smoothing.
  template <int U>
  __device__ __forceinline__ void read_rows(int i, int step, T (&t)[U][1]) const {
    tile_.load(operand<const In>(args_.target, args_.target_strides, index_), i, step, t, T(0));
  }
  // Sample weights, 1 where there are none.
  template <int U>
  __device__ __forceinline__ void read_weights(int i, int step, double (&s)[U]) const {
#pragma unroll
    for (int u = 0; u < U; ++u) s[u] = 1;
    if (!weighted()) return;
#pragma unroll
    for (int u = 0; u < U; ++u) s[u] = load_constant(args_.sample_weight + tile_.begin() + tile_.nearest(i + u * step));
  }

 protected:
  template <class Data>
  __device__ __forceinline__ Operand<Data> operand(const void* data, const Strides& strides,
                                                   const VectorIndex& index) const {
    return {static_cast<Data*>(data), strides, args_.shape, plan_, index, tile_.begin()};
  }

  const LossArgs& args_;
  const Plan& plan_;
  const TileType& tile_;
  const VectorIndex& index_;
  const bool some_ignored_;
};

// With the targets t and weights s, which are 0 where an entry is ignored.
template <class In>
class LabelledSamples : public Samples<In> {
 public:
  using T = Compute<In>;
  using Samples<In>::Samples;

  template <int U, int N>
  struct Beside {
    T t[U], s[U];
  };
  template <int U>
  __device__ __forceinline__ void read_beside(int i, int step, T (&x)[U][1], Beside<U, 1>& beside) const {
    const LossArgs& args = this->args_;
    bool ignored[U];
    double weights[U];
    this->read_weights(i, step, weights);
    if (this->dense()) {
      T rows[U][1];
      this->read_rows(i, step, rows);
      const T rest = T(this->off()), factor = T(this->keep());
#pragma unroll
      for (int u = 0; u < U; ++u) {
        ignored[u] = rows[u][0] == this->ignored_label();
        beside.t[u] = args.label_smoothing == 0 ? rows[u][0] : rest + factor * rows[u][0];
      }
    } else {
      int64_t labels[U];
      this->read_labels(i, step, labels);
      const T rest = T(this->off()), full = T(this->off() + this->keep());
#pragma unroll
      for (int u = 0; u < U; ++u) {
        ignored[u] = labels[u] == args.ignore_index;
        beside.t[u] = labels[u] == this->index_.vector ? full : rest;
      }
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
      beside.s[u] = ignored[u] ? T(0) : T(weights[u]);
      if (ignored[u]) beside.t[u] = 0, x[u][0] = -kInfinity<T>;
    }
  }

  struct Sample {
    T x, t, s;
  };
  __device__ Sample one(int i) const {
    T x[1][1];
    Beside<1, 1> beside;
    this->read(i, 0, x);
    read_beside(i, 0, x, beside);
    return {x[0][0], beside.t[0], beside.s[0]};
  }
};

}  // namespace cuda
}  // namespace hypersimplex
