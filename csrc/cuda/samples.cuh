// The samples of a loss as the threads of a tile see them, class by class: logits with ignored samples left out,
// targets from class indices or dense rows, label smoothing, sample weights. Class indices are never expanded.
#pragma once

#include "tile.cuh"

namespace hypersimplex {
namespace cuda {

template <class In>
class Samples {
 public:
  using T = Compute<In>;
  using TileType = Tile<In, false>;

  // some_ignored: whether class indices may have to be looked at to tell which logits take part
  __device__ Samples(const LossArgs& args, const Plan& plan, const TileType& tile, const Place& place,
                     bool some_ignored)
      : args_(args), plan_(plan), tile_(tile), place_(place), some_ignored_(some_ignored) {}

  __device__ bool dense() const { return args_.target_kind == TargetKind::kDense; }
  __device__ bool weighted() const { return args_.sample_weight != nullptr; }
  __device__ int64_t vector() const { return place_.vector; }
  __device__ T first() const { return tile_.first(logits()); }

  // What label smoothing makes of targets 0 and 1.
  __device__ double off() const {
    return args_.label_smoothing / double(args_.shape.inner > 2 ? args_.shape.inner : 2);
  }
  __device__ double keep() const { return 1 - args_.label_smoothing; }

  __device__ __forceinline__ int64_t label(int i) const {
    return load_constant(operand<const int64_t>(args_.target, args_.target_strides, Place{}).entry(i));
  }
  __device__ __forceinline__ double weight(int i) const {
    return load_constant(args_.sample_weight + tile_.begin() + i);
  }

  // A logit; that of an ignored sample takes no part.
  __device__ __forceinline__ void read(int i, T (&x)[1]) const {
    tile_.load(logits(), i, x, -kInfinity<T>);
    if (some_ignored_ && tile_.exists(i) && label(i) == args_.ignore_index) x[0] = -kInfinity<T>;
  }

  // The target of a sample, without label smoothing.
  __device__ __forceinline__ T dense_target(int i) const {
    T t[1];
    tile_.load(operand<const In>(args_.target, args_.target_strides, place_), i, t, T(0));
    return t[0];
  }
  // With it; 0 where the sample is ignored.
  __device__ __forceinline__ T target(int i) const {
    if (dense()) {
      const T t = dense_target(i);
      return args_.label_smoothing == 0 ? t : T(off()) + T(keep()) * t;
    }
    const int64_t index = label(i);
    return index == args_.ignore_index ? T(0) : index == place_.vector ? T(off() + keep()) : T(off());
  }

 private:
  __device__ __forceinline__ Operand<const In> logits() const {
    return operand<const In>(args_.x, args_.x_strides, place_);
  }
  template <class Data>
  __device__ __forceinline__ Operand<Data> operand(const void* data, const Strides& strides, const Place& place) const {
    return {static_cast<Data*>(data), strides, args_.shape, plan_, place, tile_.begin()};
  }

  const LossArgs& args_;
  const Plan& plan_;
  const TileType& tile_;
  const Place& place_;
  const bool some_ignored_;
};

}  // namespace cuda
}  // namespace hypersimplex
