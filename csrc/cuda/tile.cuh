// Where vectors lie in memory, and how the threads of a team divide their entries. Thread t of a block serves column
// t % columns: of that vector's entries in the block's share it takes every (threads / columns)th access, beginning
// with access t / columns. An access is one entry or, in rows of neighbours, a pack of 16 bytes.
#pragma once

#include "team.cuh"

namespace hypersimplex {
namespace cuda {

// Which vector a column of a tile holds, by its coordinates and by its number.
struct VectorIndex {
  int64_t outer, inner, vector;
  bool live;  // false where the tile is wider than the vectors that are left in its line
};
__device__ __forceinline__ VectorIndex locate(const Plan& plan, const Shape& shape, int tile, int column) {
  if (shape.inner == 1) {  // the vectors of the one line differ in `outer`
    const int64_t vector = int64_t(tile) * plan.columns + column;
    return {vector, 0, vector, vector < plan.lanes && tile < plan.tiles};
  }
  const int64_t line = tile / plan.tiles_per_line, lane = int64_t(tile % plan.tiles_per_line) * plan.columns + column;
  const bool live = lane < plan.lanes && tile < plan.tiles;
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

  __device__ Operand(Data* data, const Strides& strides, const Shape& shape, const Plan& plan, const VectorIndex& index,
                     int64_t begin)
      : at(data + index.outer * strides.outer + index.inner * strides.inner +
           (one_run(shape) ? begin * strides.n2 : 0)),
        strides(strides),
        shape(shape),
        inverse(plan.inverse_n2),
        begin(begin) {}
  __device__ static bool one_run(const Shape& shape) { return shape.n1 == 1; }

  // Entry begin + i,
  __device__ __forceinline__ Data* entry(int i) const {
    if (one_run(shape)) return at + i * strides.n2;
    int64_t j = begin + i, j1 = quotient(j, inverse);
    return at + j1 * strides.n1 + (j - j1 * shape.n2) * strides.n2;
  }
  // and several at once.
  template <int U>
  __device__ __forceinline__ void locate(const int (&i)[U], Data* (&to)[U]) const {
    if (one_run(shape)) {
#pragma unroll
      for (int u = 0; u < U; ++u) to[u] = at + i[u] * strides.n2;
    } else {
#pragma unroll
      for (int u = 0; u < U; ++u) to[u] = entry(i[u]);
    }
  }
};

// A pass takes U accesses of a thread at a time: all are read before the first is used, so that their latencies
// overlap. What it reads is up to a source:
//     source.read(i, step, x)                 entries of accesses i, i + step, ...: T x[U][N], N = 1 or kPack<In>
//     source.read_beside(i, step, x, beside)  what else there is of them: Source::Beside<U, N>, handed on to the body
// kPacked: whether global memory is ever accessed in packs. kTensors: how many of them the passes read. kKeeps: whether
// tiles may be resident.
template <class In, bool kPacked = true, int kTensors = 1, bool kKeeps = true>
class Tile {
 public:
  using T = Compute<In>;

  static constexpr int kAbreast = 1;       // columns that a thread serves: all entries of an access are of one vector
  static constexpr bool kPartial = false;  // whether some entries are but summed up (lists.cuh)
  static constexpr int kBatch = sizeof(In) == 8 ? 2 : 4;  // single entries that a pass takes at a time

  // kept_at: where in shared memory the entries are kept
  __device__ Tile(const Plan& plan, const Team& team, bool live, int kept_at)
      : plan_(plan), live_(live), kept_at_(kept_at), begin_(team.rank() * plan.share) {
    int64_t left = live ? plan.n - begin_ : 0;
    count_ = int(left < 0 ? 0 : left < plan.share ? left : plan.share);
  }

  __device__ int64_t begin() const { return begin_; }
  __device__ bool exists(int i) const { return i < count_; }
  // Whether an access that fill() hands out holds what stands in the place of an entry behind the end.
  template <int N>
  __device__ bool padded(int i, const T (&)[N]) const {
    return N == 1 && !exists(i);
  }
  // An entry that exists, instead of one behind the end.
  __device__ int nearest(int i) const { return i < count_ - 1 ? i : count_ - 1; }

  // The vector's first entry, whichever block holds it.
  __device__ T first(const Operand<const In>& from) const {
    return live_ ? widen(load_constant(from.at - (from.one_run(from.shape) ? begin_ * from.strides.n2 : 0))) : T(0);
  }

  // Accesses i, i + step, ... of the share from global memory. Packs exist; behind the end another entry is read once
  // more, so that no branch keeps the loads apart, and `padding` takes its place.
  template <int U, int N>
  __device__ __forceinline__ void load(const Operand<const In>& from, int i, int step, T (&x)[U][N], T padding) const {
    if constexpr (N > 1) {
      uint4 raw[U];
#pragma unroll
      for (int u = 0; u < U; ++u) raw[u] = load_constant_pack(from.at + i + u * step);
#pragma unroll
      for (int u = 0; u < U; ++u) unpack<In>(raw[u], x[u]);
    } else {
      In raw[U];
      load_raw(from, i, step, raw);
#pragma unroll
      for (int u = 0; u < U; ++u) x[u][0] = exists(i + u * step) ? widen(raw[u]) : padding;
    }
  }
  // Any numbers that there is one of per entry.
  template <class Data, int U>
  __device__ __forceinline__ void load_raw(const Operand<const Data>& from, int i, int step, Data (&raw)[U]) const {
    int at[U];
    const Data* entries[U];
#pragma unroll
    for (int u = 0; u < U; ++u) at[u] = nearest(i + u * step);
    from.locate(at, entries);
#pragma unroll
    for (int u = 0; u < U; ++u) raw[u] = load_constant(entries[u]);
  }
  template <int N>
  __device__ void store(const Operand<In>& to, int i, const T (&y)[N]) const {
    if constexpr (N > 1)
      *reinterpret_cast<uint4*>(to.at + i) = pack<In>(y);
    else
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

  // First pass: body(i, x, beside, u) over what the source reads, which is kept if the tile is resident.
  template <class Source, class Body, class Flush>
  __device__ void fill(const Source& source, Body body, Flush flush) const {
    run<kPacked, kBatch / kTensors, (kPack<In> <= 4 ? 4 : 2) / kTensors, Source>(
        packs(), end(), flush,
        [&](int i, int step, auto& x, auto& beside) {
          source.read(i, step, x);
          source.read_beside(i, step, x, beside);
        },
        [&](int i, auto& x, auto& beside, int u) {
          if (resident()) keep(i, x);
          body(i, x, beside, u);
        });
  }

  // Later passes over the same entries, body(i, x): from shared memory, or read again.
  template <class Source, class Body, class Flush>
  __device__ void sweep(const Source& source, Body body, Flush flush) const {
    auto sweep_over = [&](auto resident) {
      run<true, kBatch, 2, Nothing>(
          packs() || whole_packs(), end(), flush,
          [&](int i, int step, auto& x, auto&) { again<resident.value>(source, i, step, x); },
          [&](int i, auto& x, auto&, int) { body(i, x); });
    };
    if (resident())
      sweep_over(Constant<true>{});
    else
      sweep_over(Constant<false>{});
  }
  // The same for what is seldom needed.
  template <class Source, class Body>
  __device__ void sweep_seldom(const Source& source, Body body) const {
    run<true, 1, 1, Nothing>(
        packs() || whole_packs(), end(), [] {},
        [&](int i, int step, auto& x, auto&) { again_anyhow(source, i, step, x); },
        [&](int i, auto& x, auto&, int) { body(i, x); });
  }
  // The same where other tensors take part, with the accesses of the first pass and its body's arguments.
  template <class Source, class Body, class Flush>
  __device__ void pass(const Source& source, Body body, Flush flush) const {
    // Of two tensors, more than 16 entries or a pack of doubles each would be spilled.
    constexpr int kPacks = kPack<In> == 4 || kTensors == 1 ? 2 : 1;
    run<kPacked, kBatch / kTensors, kPacks, Source>(
        packs(), count_, flush,
        [&](int i, int step, auto& x, auto& beside) {
          again_anyhow(source, i, step, x);
          source.read_beside(i, step, x, beside);
        },
        body);
  }
  // body(i, beside, u) for what there is beside the entries,
  template <class Source, class Body>
  __device__ void pass_beside(const Source& source, Body body) const {
    run_in<1, kBatch, Source>(
        count_, [] {}, [&](int i, int step, auto& x, auto& beside) { source.read_beside(i, step, x, beside); },
        [&](int i, auto&, auto& beside, int u) { body(i, beside, u); });
  }
  // and body(i) for one entry after another, where speed does not matter.
  template <class Body>
  __device__ void each_singly(Body body) const {
    run_in<1, 1, Nothing>(count_, [] {}, [](int, int, auto&, auto&) {}, [&](int i, auto&, auto&, int) { body(i); });
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
  struct Nothing {
    template <int U, int N>
    struct Beside {};
  };

  // gather(i, step, x, beside) and visit(i, x[u], beside, u) for the thread's accesses, and flush() after every kFlush
  // entries at most.
  template <bool kMayPack, int kEntries, int kPacks, class Source, class Flush, class Gather, class Visit>
  __device__ void run(bool in_packs, int end, Flush flush, Gather gather, Visit visit) const {
    if constexpr (kMayPack)
      if (in_packs) return run_in<kPack<In>, kPacks, Source>(end, flush, gather, visit);
    run_in<1, kEntries, Source>(end, flush, gather, visit);
  }
  template <int N, int U, class Source, class Flush, class Gather, class Visit>
  __device__ void run_in(int end, Flush flush, Gather gather, Visit visit) const {
    const int step = int(blockDim.x >> plan_.column_bits) * N, period = step * (tuning::kFlush / N);
    // Before each turn the thread's accesses in front of i have been visited and flushed. run_batches() moves i to the
    // first one that is not in front of stop.
    for (int i = int(threadIdx.x >> plan_.column_bits) * N; i < end;) {
      const int stop = end - i > period ? i + period : end;
      run_batches<N, U, Source>(i, step, stop, gather, visit);
      flush();
    }
  }
  // Batches of packs are whole, and what is left is taken in smaller ones: the compiler moves a load whose use depends
  // on a condition behind that, and so behind the use of the loads before. Loads of single entries it leaves together;
  // the last batch of them may reach beyond the end.
  template <int N, int U, class Source, class Gather, class Visit>
  __device__ __forceinline__ void run_batches(int& i, int step, int stop, Gather gather, Visit visit) const {
    constexpr bool kWhole = N > 1;
#pragma unroll 1
    for (; i < (kWhole ? stop - (U - 1) * step : stop); i += U * step) {
      T x[U][N];
      typename Source::template Beside<U, N> beside;
      gather(i, step, x, beside);
#pragma unroll
      for (int u = 0; u < U; ++u)
        if (kWhole || u == 0 || i + u * step < stop) visit(i + u * step, x[u], beside, u);
    }
    if constexpr (kWhole && U > 1) run_batches<N, U / 2, Source>(i, step, stop, gather, visit);
  }

  // The entries of the first pass: kept in shared memory, or read again.
  template <bool kResident, class Source, int U, int N>
  __device__ __forceinline__ void again(const Source& source, int i, int step, T (&x)[U][N]) const {
    if constexpr (kResident) {
#pragma unroll
      for (int u = 0; u < U; ++u) recall(N > 1 || u == 0 || i + u * step < end() ? i + u * step : i, x[u]);
    } else if constexpr (kPacked || N == 1) {
      source.read(i, step, x);
    }
  }
  template <class Source, int U, int N>
  __device__ void again_anyhow(const Source& source, int i, int step, T (&x)[U][N]) const {
    if (resident())
      again<true>(source, i, step, x);
    else
      again<false>(source, i, step, x);
  }

  __device__ int column() const { return int(threadIdx.x) & (plan_.columns - 1); }
  __device__ In* kept() const { return shared_memory<In>(kept_at_); }
  __device__ uint8_t* marks() const {
    return shared_memory<uint8_t>(kept_at_ + (int(plan_.share) << plan_.column_bits) * int(sizeof(In)));
  }
  __device__ bool resident() const { return kKeeps && plan_.resident; }
  __device__ bool packs() const { return kPacked && plan_.packs; }
  // A row is kept in whole packs, however it is read.
  __device__ bool whole_packs() const { return resident() && plan_.columns == 1; }
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
  using T = Compute<In>;
  const Tile& tile;
  const Operand<const In>& from;
  const T padding;

  template <int U, int N>
  struct Beside {};

  __device__ T first(const VectorIndex&) const { return tile.first(from); }
  template <int U, int N>
  __device__ __forceinline__ void read(int i, int step, T (&x)[U][N]) const {
    tile.load(from, i, step, x, padding);
  }
  template <int U, int N>
  __device__ void read_beside(int, int, T (&)[U][N], Beside<U, N>&) const {}
};

}  // namespace cuda
}  // namespace hypersimplex
