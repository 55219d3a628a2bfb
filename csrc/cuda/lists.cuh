// Which entries of a long vector a bracket of its threshold leaves undecided: each thread lists its own in shared
// memory, and keeps sums over those that are decided. To Solver the lists are a tile like any other.
#pragma once

#include "solver.cuh"

namespace hypersimplex {
namespace cuda {

// The root lies between two thresholds. An entry at or below `floor` then is zero, one between the inner bounds is
// active, one at or above `ceiling` is one; else it is undecided, and so is NaN.
template <class T>
struct Bracket {
  Pair lo, hi;
  T floor, inner_floor, inner_ceiling, ceiling;

  __device__ void set(Pair from, Pair to, double tau) {
    lo = from;
    hi = to;
    floor = active_floor<T>(lo);
    inner_floor = active_floor<T>(hi);
    inner_ceiling = active_ceiling<T>(lo, tau);
    ceiling = active_ceiling<T>(hi, tau);
  }
  // Without an upper end: what is not zero is undecided.
  __device__ void set_open(Pair from) {
    lo = from;
    floor = active_floor<T>(lo);
  }

  __device__ __forceinline__ bool zero(T x) const { return x <= floor; }
  __device__ __forceinline__ bool active(T x) const { return x > inner_floor && x < inner_ceiling; }
  __device__ __forceinline__ bool one(T x) const { return x >= ceiling; }
};

template <class In>
class Lists {
 public:
  using T = Compute<In>;

  static constexpr int kAbreast = 1;
  static constexpr bool kPartial = true;

  // kept_at: where in shared memory the lists are; open: whether the bracket is, and places are listed too
  __device__ Lists(const Plan& plan, const Team& team, int kept_at, const Bracket<T>& bracket, bool open)
      : plan_(plan),
        bracket_(bracket),
        rank_(team.rank()),
        begin_(kept_at + int(threadIdx.x * sizeof(In))),
        end_(begin_ + slots(plan, open) * pitch()),
        next_(begin_) {}

  // How many entries a thread can list.
  __device__ static int slots(const Plan& plan, bool open) {
    return plan.list_bytes / int(sizeof(In) + (open ? sizeof(int) : 0));
  }

  // Takes in the entries of a vector.
  __device__ void take(const In* x) {
    const Bracket<T> of = bracket_;  // in registers
    const T p = T(of.lo.p);
    double sum = 0;
    each_batch(x, [&](int, const auto& batch) {
      T part = 0;
#pragma unroll
      for (const auto& pack : batch) {
#pragma unroll
        for (T v : pack) {
          const bool active = of.active(v), one = of.one(v);
          if (active) {
            ++active_;
            part += v - p;
          }
          if (one) ++ones_;
          if (!of.zero(v) && !active && !one) list(v);
        }
      }
      sum += double(part);
    });
    sum_ = sum;
  }
  // The same with an open bracket. Writes zero to y, if there is one, in place of every entry.
  __device__ void take_open(const In* x, In* y) {
    const T floor = bracket_.floor;
    const int64_t step = this->step();
    uint4* to = reinterpret_cast<uint4*>(y) + first();
    each_batch(x, [&](int turn, const auto& batch) {
      int place = turn * kPack<In>;
#pragma unroll
      for (const auto& pack : batch) {
        if (y) *to = uint4{0, 0, 0, 0};
        to += step;
#pragma unroll
        for (T v : pack) {
          if (!(v <= floor)) {
            if (next_ < end_) *place_at(next_) = place;
            list(v);
          }
          ++place;
        }
      }
    });
  }
  // Writes the entries of open lists where they belong.
  __device__ void write(In* y, const Projector<T>& projector) const {
    for (int at = begin_; at < next_; at += pitch()) {
      const int place = *place_at(at);
      const int64_t pack = first() + place / kPack<In> * step();
      y[pack * kPack<In> + place % kPack<In>] = narrow<In>(projector.y(value(at)));
    }
  }

  // Entries that are not zero, NaNs among them; nothing is known where a list is full.
  __device__ bool full() const { return next_ == end_; }
  __device__ double taken() const { return double((next_ - begin_) / pitch()) + double(active_) + double(ones_); }

  __device__ double greatest() const {
    T most = -kInfinity<T>;
    for (int at = begin_; at < next_; at += pitch()) most = greater(most, value(at));
    return double(most);
  }

  // ---- as a tile, and as its source ----

  __device__ T first(const VectorIndex&) const { return T(0); }
  template <int N>
  __device__ bool padded(int, const T (&)[N]) const {
    return false;
  }
  template <class Source, class Body, class Flush>
  __device__ void fill(const Source& source, Body body, Flush flush) const {
    sweep(source, body, flush);
  }
  template <class Source, class Body, class Flush>
  __device__ void sweep(const Source&, Body body, Flush flush) const {
    const int pitch = this->pitch(), period = pitch * tuning::kFlush;
    // Before each turn the entries in front of `at` have been visited and flushed.
    for (int at = begin_; at < next_;) {
      const int stop = next_ - at > period ? at + period : next_;
#pragma unroll 4
      for (; at < stop; at += pitch) {
        const T x[1] = {value(at)};
        body(0, x);
      }
      flush();
    }
  }
  template <class Source, class Body>
  __device__ void sweep_seldom(const Source& source, Body body) const {
    sweep(source, body, [] {});
  }
  // What the entries that are decided add to a count at a threshold within the bracket.
  template <class Sums>
  __device__ void add_decided(const Projector<T>& at, Sums& sums) const {
    sums.count[0] += active_ + ones_;
    sums.count[1] += ones_;
    sums.sum[0] += sum_ - double(active_) * (double(at.p) - bracket_.lo.p);
  }

 private:
  static constexpr int kBatch = kPack<In> <= 4 ? 4 : 2;  // packs that are on their way together

  // body(turn, batch) for the thread's packs, some at a time: the turn of the first, and T[packs][entries of each].
  // Blocks and threads take packs in turns, so that each lists about as many, however the vector is ordered.
  template <class Body>
  __device__ __forceinline__ void each_batch(const In* x, Body body) const {
    const int64_t first = this->first(), step = this->step(), packs = plan_.n / kPack<In>;
    const int turns = first < packs ? int((packs - first + step - 1) / step) : 0;
    const In* from = x + first * kPack<In>;
    int turn = 0;
#pragma unroll 1
    for (; turn < turns - (kBatch - 1); turn += kBatch) read<kBatch>(from, step, turn, body);
#pragma unroll 1
    for (; turn < turns; ++turn) read<1>(from, step, turn, body);
  }
  template <int U, class Body>
  __device__ __forceinline__ static void read(const In*& from, int64_t step, int turn, Body body) {
    uint4 raw[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      raw[u] = load_constant_pack(from);
      from += step * kPack<In>;
    }
    T batch[U][kPack<In>];
#pragma unroll
    for (int u = 0; u < U; ++u) unpack<In>(raw[u], batch[u]);
    body(turn, batch);
  }

  __device__ __forceinline__ void list(T v) {
    if (next_ >= end_) return;
    *shared_memory<In>(next_) = narrow<In>(v);
    next_ += pitch();
  }
  __device__ static T value(int at) { return widen(*shared_memory<In>(at)); }
  __device__ int* place_at(int at) const {
    const int places = end_ - int(threadIdx.x * sizeof(In)), j = (at - begin_) / int(sizeof(In));  // behind all values
    return shared_memory<int>(places + (j + int(threadIdx.x)) * int(sizeof(int)));
  }
  // From an entry of a list to the next: the lists of all threads lie side by side.
  __device__ static int pitch() { return int(blockDim.x * sizeof(In)); }

  // Of the thread's packs the first, and from each to the next.
  __device__ int64_t first() const { return int64_t(rank_) * blockDim.x + threadIdx.x; }
  __device__ int64_t step() const { return int64_t(plan_.blocks) * blockDim.x; }

  const Plan& plan_;
  const Bracket<T>& bracket_;
  const int rank_, begin_, end_;  // of the list, in bytes of shared memory
  int next_;
  unsigned active_ = 0, ones_ = 0;
  double sum_ = 0;  // of the active entries, x - lo.p
};

}  // namespace cuda
}  // namespace hypersimplex
