// Where vectors lie in memory, and how the threads of a team share their entries: thread t of a block serves column
// t % columns and, of that vector's entries in the block's share, every (threads / columns)th access from the one it
// begins with. An access is one entry or, in rows of neighbours, a pack of 16 bytes.
#pragma once

#include "team.cuh"

namespace hypersimplex {
namespace cuda {

// Column `column` of tile number `tile`.
struct Place {
  int64_t outer, inner, vector;
  bool live;  // false beside the last vector of a line
};
__device__ __forceinline__ Place locate(const Plan& plan, const Shape& shape, int tile, int column) {
  int64_t line = tile / plan.tiles_per_line, lane = int64_t(tile % plan.tiles_per_line) * plan.columns + column;
  bool live = lane < plan.lanes && tile < plan.tiles;
  if (shape.inner == 1) return {lane, 0, lane, live};  // the vectors of the one line differ in `outer`
  return {line, lane, line * plan.lanes + lane, live};
}

// The entries of one vector in one tensor.
template <class Data>
struct Operand {
  Data* at;  // of entry `begin` in one run, else of entry 0
  const Strides& strides;
  const Shape& shape;
  const uint64_t inverse;  // of shape.n2
  const int64_t begin;

  __device__ Operand(Data* data, const Strides& strides, const Shape& shape, const Plan& plan, const Place& place,
                     int64_t begin)
      : at(data + place.outer * strides.outer + place.inner * strides.inner +
           (one_run(shape) ? begin * strides.n2 : 0)),
        strides(strides),
        shape(shape),
        inverse(plan.inverse_n2),
        begin(begin) {}
  __device__ static bool one_run(const Shape& shape) { return shape.n1 == 1; }

  // Entry begin + i.
  __device__ __forceinline__ Data* entry(int i) const {
    if (one_run(shape)) return at + i * strides.n2;
    int64_t j = begin + i, j1 = quotient(j, inverse);
    return at + j1 * strides.n1 + (j - j1 * shape.n2) * strides.n2;
  }
};

// kPacked: whether global memory is ever accessed in packs. kTensors: how many of them the first pass reads.
template <class In, bool kPacked = true, int kTensors = 1>
class Tile {
 public:
  using T = Compute<In>;

  // kept_at: where in shared memory the entries are kept
  __device__ Tile(const Plan& plan, const Team& team, bool live, int kept_at)
      : plan_(plan), live_(live), kept_at_(kept_at), begin_(team.rank() * plan.share) {
    int64_t left = plan.n - begin_;
    count_ = int(left < 0 ? 0 : left < plan.share ? left : plan.share);
  }

  __device__ int64_t begin() const { return begin_; }
  __device__ bool exists(int i) const { return live_ && i < count_; }

  // The vector's first entry, whichever block holds it.
  __device__ T first(const Operand<const In>& from) const {
    return live_ ? widen(load_constant(from.at - (from.one_run(from.shape) ? begin_ * from.strides.n2 : 0))) : T(0);
  }

  // Entries i to i + N of the share from global memory, `padding` where there is none. N is 1 or kPack<In>.
  template <int N>
  __device__ void load(const Operand<const In>& from, int i, T (&x)[N], T padding) const {
    if constexpr (N > 1)
      unpack<In>(load_constant_pack(from.at + i), x);
    else
      x[0] = exists(i) ? widen(load_constant(from.entry(i))) : padding;
  }
  template <int N>
  __device__ void store(const Operand<In>& to, int i, const T (&y)[N]) const {
    if constexpr (N > 1)
      *reinterpret_cast<uint4*>(to.at + i) = pack<In>(y);
    else if (exists(i))
      *to.entry(i) = narrow<In>(y[0]);
  }

  // The same in shared memory.
  template <int N>
  __device__ void keep(int i, const T (&x)[N]) const {
    if constexpr (N > 1)
      *reinterpret_cast<uint4*>(kept() + i) = pack<In>(x);
    else
      kept()[(i << plan_.column_bits) + column()] = narrow<In>(x[0]);
  }
  template <int N>
  __device__ void recall(int i, T (&x)[N]) const {
    if constexpr (N > 1)
      unpack<In>(*reinterpret_cast<const uint4*>(kept() + i), x);
    else
      x[0] = widen(kept()[(i << plan_.column_bits) + column()]);
  }

  // First pass: body(i, x) over what source.read(i, x) gives, which is kept if the tile is resident.
  template <class Source, class Body, class Flush>
  __device__ void fill(const Source& source, Body body, Flush flush) const {
    run<kPacked, 4 / kTensors, (kPack<In> <= 4 ? 4 : 2) / kTensors>(packs(), end(), flush, [&](int i, auto& x) {
      source.read(i, x);
      if (plan_.resident) keep(i, x);
      body(i, x);
    });
  }

  // Later passes over the same entries: from shared memory, or read again.
  template <class Source, class Body, class Flush>
  __device__ void sweep(const Source& source, Body body, Flush flush) const {
    run<true, 4, kPack<In> <= 4 ? 2 : 1>(packs() || whole_packs(), end(), flush, [&](int i, auto& x) {
      again(source, i, x);
      body(i, x);
    });
  }
  // The same for what is seldom needed.
  template <class Source, class Body>
  __device__ void sweep_seldom(const Source& source, Body body) const {
    run<true, 1, 1>(
        packs() || whole_packs(), end(), [] {},
        [&](int i, auto& x) {
          again(source, i, x);
          body(i, x);
        });
  }
  // The same where other tensors take part, with the accesses of the first pass.
  template <class Source, class Body, class Flush>
  __device__ void pass(const Source& source, Body body, Flush flush) const {
    run<kPacked, 4 / kTensors, kPack<In> <= 4 ? 2 : 1>(packs(), count_, flush, [&](int i, auto& x) {
      again(source, i, x);
      body(i, x);
    });
  }
  // body(i) for the thread's entries one by one,
  template <class Body, class Flush>
  __device__ void each(Body body, Flush flush) const {
    run_in<1, 4>(count_, flush, [&](int i, auto&) { body(i); });
  }
  // and for what is seldom needed.
  template <class Body>
  __device__ void each_singly(Body body) const {
    run_in<1, 1>(count_, [] {}, [&](int i, auto&) { body(i); });
  }

  // A byte per access, behind the entries.
  template <int N>
  __device__ void mark(int i, const T (&)[N], unsigned bits) const {
    marks()[N > 1 ? i / N : (i << plan_.column_bits) + column()] = uint8_t(bits);
  }
  template <int N>
  __device__ unsigned marked(int i, const T (&)[N]) const {
    return marks()[N > 1 ? i / N : (i << plan_.column_bits) + column()];
  }

 private:
  // visit(i, x) for the thread's accesses, and flush() after every kFlush entries at most.
  template <bool kMayPack, int kUnrollEntries, int kUnrollPacks, class Flush, class Visit>
  __device__ void run(bool in_packs, int end, Flush flush, Visit visit) const {
    if constexpr (kMayPack)
      if (in_packs) return run_in<kPack<In>, kUnrollPacks>(end, flush, visit);
    run_in<1, kUnrollEntries>(end, flush, visit);
  }
  template <int N, int kUnroll, class Flush, class Visit>
  __device__ void run_in(int end, Flush flush, Visit visit) const {
    const int step = int(blockDim.x >> plan_.column_bits) * N, period = step * (tuning::kFlush / N);
    for (int i = int(threadIdx.x >> plan_.column_bits) * N; i < end;) {
      const int stop = end - i > period ? i + period : end;
#pragma unroll kUnroll
      for (; i < stop; i += step) {
        T x[N];
        visit(i, x);
      }
      flush();
    }
  }

  template <class Source, int N>
  __device__ void again(const Source& source, int i, T (&x)[N]) const {
    if (plan_.resident) return recall(i, x);
    if constexpr (kPacked || N == 1) source.read(i, x);
  }

  __device__ int column() const { return int(threadIdx.x) & (plan_.columns - 1); }
  __device__ In* kept() const { return shared_memory<In>(kept_at_); }
  __device__ uint8_t* marks() const {
    return shared_memory<uint8_t>(kept_at_ + (int(plan_.share) << plan_.column_bits) * int(sizeof(In)));
  }
  __device__ bool packs() const { return kPacked && plan_.packs; }
  // A row is kept in whole packs, however it is read.
  __device__ bool whole_packs() const { return plan_.resident && plan_.columns == 1; }
  __device__ int end() const { return whole_packs() ? (count_ + kPack<In> - 1) / kPack<In> * kPack<In> : count_; }

  const Plan& plan_;
  const bool live_;
  const int kept_at_;
  int count_;
  const int64_t begin_;
};

// The source of a tile that is nothing but the entries of one tensor.
template <class In, class Tile>
struct Entries {
  const Tile& tile;
  const Operand<const In>& from;
  const Compute<In> padding;

  __device__ Compute<In> first() const { return tile.first(from); }
  template <int N>
  __device__ void read(int i, Compute<In> (&x)[N]) const {
    tile.load(from, i, x, padding);
  }
};

}  // namespace cuda
}  // namespace hypersimplex
