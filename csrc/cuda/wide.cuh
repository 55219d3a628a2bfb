// Tiles of vectors that lie side by side, as the columns of logits do, whose threads serve kWide neighbours each: one
// access of 8 or 16 bytes holds an entry of every one of them, and one label and one set of indices serve them all.
// Thread t of a block serves the columns from kWide * (t % slots) on, slots = columns / kWide, and of their entries
// every (threads / slots)th, beginning with entry t / slots.
#pragma once

#include "tile.cuh"

namespace hypersimplex {
namespace cuda {

// kResident: whether the entries are kept in shared memory between the passes.
template <class In, bool kResident>
class WideTile {
 public:
  using T = Compute<In>;
  using Entry = In;

  static constexpr int kWide = sizeof(In) == 8 ? 2 : 4;
  static constexpr int kAbreast = kWide;  // as in Tile
  static constexpr bool kPartial = false;

  __device__ WideTile(const Plan& plan, const Team& team, bool live, int kept_at)
      : plan_(plan), kept_at_(kept_at), begin_(team.rank() * plan.share) {
    int64_t left = live ? plan.n - begin_ : 0;
    count_ = int(left < 0 ? 0 : left < plan.share ? left : plan.share);
  }

  __device__ int64_t begin() const { return begin_; }
  __device__ bool exists(int i) const { return i < count_; }
  template <int N>
  __device__ bool padded(int, const T (&)[N]) const {
    return false;
  }
  __device__ int nearest(int i) const { return i < count_ - 1 ? i : count_ - 1; }

  // Entries i, i + step, ... of the share, of all columns, from global memory; `from` is the first column's.
  template <int U>
  __device__ __forceinline__ void load(const Operand<const In>& from, int i, int step, T (&x)[U][kWide]) const {
    const In* at[U];
    locate(from, i, step, at);
    Pack raw[U];
#pragma unroll
    for (int u = 0; u < U; ++u) raw[u] = load_constant(reinterpret_cast<const Pack*>(at[u]));
#pragma unroll
    for (int u = 0; u < U; ++u) unpack<In>(raw[u], x[u]);
  }
  // Any numbers that there is one of per entry, whatever the column.
  template <class Data, int U>
  __device__ __forceinline__ void load_raw(const Operand<const Data>& from, int i, int step, Data (&raw)[U]) const {
    const Data* at[U];
    locate(from, i, step, at);
#pragma unroll
    for (int u = 0; u < U; ++u) raw[u] = load_constant(at[u]);
  }
  __device__ void store(const Operand<In>& to, int i, const T (&y)[kWide]) const {
    *reinterpret_cast<Pack*>(to.entry(i)) = pack<In>(y);
  }

  // The passes of Tile.
  template <class Source, class Body, class Flush>
  __device__ void fill(const Source& source, Body body, Flush flush) const {
    source.for_reading([&](const auto& chosen) { fill_from<Source>(chosen, body, flush); });
  }
  template <class Source, class Chosen, class Body, class Flush>
  __device__ __forceinline__ void fill_from(const Chosen& source, Body body, Flush flush) const {
    run<kBatch, Source>(
        flush, [&](int i, int step, auto& x, auto&) { source(i, step, x); },
        [&](int i, auto& x, auto& beside, int u) {
          if constexpr (kResident) *kept(i) = pack<In>(x);
          body(i, x, beside, u);
        });
  }
  template <class Source, class Body, class Flush>
  __device__ void sweep(const Source& source, Body body, Flush flush) const {
    run<kBatch, Nothing>(
        flush, [&](int i, int step, auto& x, auto&) { again(source, i, step, x); },
        [&](int i, auto& x, auto&, int) { body(i, x); });
  }
  template <class Source, class Body>
  __device__ void sweep_seldom(const Source& source, Body body) const {
    run<1, Nothing>([] {}, [&](int i, int step, auto& x, auto&) { again(source, i, step, x); },
                    [&](int i, auto& x, auto&, int) { body(i, x); });
  }
  template <class Source, class Body, class Flush>
  __device__ void pass(const Source& source, Body body, Flush flush) const {
    run<2, Source>(
        flush,
        [&](int i, int step, auto& x, auto& beside) {
          again(source, i, step, x);
          source.read_beside(i, step, x, beside);
        },
        body);
  }
  template <class Source, class Body>
  __device__ void each_singly(const Source& source, Body body) const {
    run<1, Source>([] {},
                   [&](int i, int step, auto& x, auto& beside) {
                     source.read(i, step, x);
                     source.read_beside(i, step, x, beside);
                   },
                   body);
  }

 private:
  using Pack = cuda::Pack<In, kWide>;
  static constexpr int kBatch = 4;  // accesses that a pass takes at a time

  struct Nothing {
    template <int U, int N>
    struct Beside {};
  };

  template <int U, class Source, class Flush, class Gather, class Visit>
  __device__ void run(Flush flush, Gather gather, Visit visit) const {
    const int step = int(blockDim.x) * kWide >> plan_.column_bits, period = step * tuning::kFlush;
    // As in Tile: before each turn the thread's entries in front of i have been visited and flushed.
    for (int i = int(threadIdx.x) * kWide >> plan_.column_bits; i < count_;) {
      const int stop = count_ - i > period ? i + period : count_;
      run_batches<U, Source>(i, step, stop, gather, visit);
      flush();
    }
  }
  template <int U, class Source, class Gather, class Visit>
  __device__ __forceinline__ void run_batches(int& i, int step, int stop, Gather gather, Visit visit) const {
#pragma unroll 1
    for (; i < stop - (U - 1) * step; i += U * step) {
      T x[U][kWide];
      typename Source::template Beside<U, kWide> beside;
      gather(i, step, x, beside);
#pragma unroll
      for (int u = 0; u < U; ++u) visit(i + u * step, x[u], beside, u);
    }
    if constexpr (U > 1) run_batches<1, Source>(i, step, stop, gather, visit);
  }

  template <class Data, int U>
  __device__ __forceinline__ static void locate(const Operand<Data>& from, int i, int step, Data* (&at)[U]) {
    if (from.one_run(from.shape)) {
      Data* const first = from.at + i * from.strides.n2;
      const int64_t pitch = step * from.strides.n2;
#pragma unroll
      for (int u = 0; u < U; ++u) at[u] = first + u * pitch;
    } else {
#pragma unroll
      for (int u = 0; u < U; ++u) at[u] = from.entry(i + u * step);
    }
  }
  template <class Source, int U>
  __device__ __forceinline__ void again(const Source& source, int i, int step, T (&x)[U][kWide]) const {
    if constexpr (kResident) {
      Pack raw[U];
#pragma unroll
      for (int u = 0; u < U; ++u) raw[u] = *kept(i + u * step);
#pragma unroll
      for (int u = 0; u < U; ++u) unpack<In>(raw[u], x[u]);
    } else {
      source.read(i, step, x);
    }
  }
  __device__ __forceinline__ Pack* kept(int i) const {
    const int column = int(threadIdx.x) * kWide & (plan_.columns - 1);
    In* const entries = shared_memory<In>(kept_at_) + (i << plan_.column_bits) + column;
    return static_cast<Pack*>(__builtin_assume_aligned(entries, sizeof(Pack)));
  }

  const Plan& plan_;
  const int kept_at_;
  int count_;
  const int64_t begin_;
};

}  // namespace cuda
}  // namespace hypersimplex
