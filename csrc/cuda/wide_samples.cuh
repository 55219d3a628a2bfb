// The samples of a loss for the threads of a WideTile: of kWide classes side by side, with class indices as targets,
// which are read once for all of them. What each member is for is said in samples.cuh.
#pragma once

#include "../loss_state.h"
#include "wide.cuh"

namespace hypersimplex {
namespace cuda {

template <class In, bool kResident>
class WideSamples {
 public:
  using T = Compute<In>;
  using TileType = WideTile<In, kResident>;
  static constexpr int kWide = TileType::kWide;

  // index: of the first of the classes that the thread serves
  __device__ WideSamples(const LossArgs& args, const Plan& plan, const TileType& tile, const VectorIndex& index,
                         bool some_ignored)
      : args_(args),
        tile_(tile),
        first_class_(index.vector),
        some_ignored_(some_ignored),
        x_(static_cast<const In*>(args.x), args.x_strides, args.shape, plan, index, tile.begin()),
        labels_(static_cast<const int64_t*>(args.target), args.target_strides, args.shape, plan, VectorIndex{},
                tile.begin()) {}

  __device__ bool weighted() const { return args_.sample_weight != nullptr; }

  // Of a class, its first sample's logit, whichever block holds it.
  __device__ T first(const VectorIndex& index) const {
    const In* x = static_cast<const In*>(args_.x) + index.outer * args_.x_strides.outer;
    return index.live ? widen(load_constant(x + index.inner)) : T(0);
  }

  template <int U>
  __device__ __forceinline__ void read(int i, int step, T (&x)[U][kWide]) const {
    tile_.load(x_, i, step, x);
    if (some_ignored_) leave_out_ignored(i, step, x);
  }
  // use(read) for a read() that is the same for all samples, so that no condition keeps its loads apart.
  template <class Use>
  __device__ __forceinline__ void for_reading(Use use) const {
    if (some_ignored_)
      use([&](int i, int step, auto& x) { read(i, step, x); });
    else
      use([&](int i, int step, auto& x) { tile_.load(x_, i, step, x); });
  }

  template <int U, int N>
  struct Beside {};
  template <int U>
  __device__ void read_beside(int, int, T (&)[U][kWide], Beside<U, kWide>&) const {}

 protected:
  template <int U>
  __device__ __forceinline__ void leave_out_ignored(int i, int step, T (&x)[U][kWide]) const {
    int64_t labels[U];
    tile_.load_raw(labels_, i, step, labels);
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (labels[u] == args_.ignore_index) leave_out(x[u]);
  }
  __device__ static void leave_out(T (&x)[kWide]) {
#pragma unroll
    for (T& v : x) v = -kInfinity<T>;
  }

  const LossArgs& args_;
  const TileType& tile_;
  const int64_t first_class_;
  const bool some_ignored_;
  const Operand<const In> x_;
  const Operand<const int64_t> labels_;
};

// With the targets: `full` for the entry that the sample's label names, `rest` for the others, and weights; both are 0
// where a sample is ignored.
template <class In, bool kResident>
class WideLabelledSamples : public WideSamples<In, kResident> {
 public:
  using T = Compute<In>;
  using Base = WideSamples<In, kResident>;
  using Base::kWide;

  __device__ WideLabelledSamples(const LossArgs& args, const Plan& plan, const typename Base::TileType& tile,
                                 const VectorIndex& index, bool some_ignored)
      : Base(args, plan, tile, index, some_ignored),
        full(T(smoothing_off(args) + (1 - args.label_smoothing))),
        rest_(T(smoothing_off(args))) {}

  template <int U, int N>
  struct Beside {
    int named[U];  // which of the thread's classes, or another number
    T rest[U], s[U];
  };
  template <int U>
  __device__ __forceinline__ void read_beside(int i, int step, T (&x)[U][kWide], Beside<U, kWide>& beside) const {
    int64_t labels[U];
    this->tile_.load_raw(this->labels_, i, step, labels);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const bool ignored = labels[u] == this->args_.ignore_index;
      const int64_t named = labels[u] - this->first_class_;
      beside.named[u] = named >= 0 && named < kWide && !ignored ? int(named) : -1;
      beside.rest[u] = ignored ? T(0) : rest_;
      beside.s[u] = ignored ? T(0) : T(1);
      if (ignored) this->leave_out(x[u]);
    }
    if (!this->weighted()) return;
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (beside.s[u] != 0)
        beside.s[u] = T(load_constant(this->args_.sample_weight + this->tile_.begin() + i + u * step));
  }

  template <int U>
  __device__ __forceinline__ T target(const Beside<U, kWide>& beside, int u, int v) const {
    return beside.named[u] == v ? full : beside.rest[u];
  }

  const T full;

 private:
  const T rest_;
};

}  // namespace cuda
}  // namespace hypersimplex
