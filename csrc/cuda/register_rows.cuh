// Short vectors: each lies in the registers of a group of 1 to 32 lanes, so that only a warp's lanes wait for one
// another. A group has few lanes with many entries each, rather than many with few: a step of the search takes a warp
// as long for one vector as for all that it holds.
#pragma once

#include "block.cuh"
#include "tile.cuh"

namespace hypersimplex {
namespace cuda {

template <class In>
class RegisterRows {
 public:
  using T = Compute<In>;
  static constexpr int kItems = tuning::kShortBytes / int(sizeof(T));
  static constexpr int kChunk = kPack<In>, kChunks = kItems / kChunk;
  using Items = T[kItems];

  const int tile;
  const int group, column, slot;
  const VectorIndex index;

  __device__ RegisterRows(const Plan& plan, const Shape& shape)
      : tile(int(blockIdx.x) * warp_count() + warp_id()),
        group(plan.group),
        column(plan.adjacent ? lane_id() & (plan.columns - 1) : lane_id() >> highest_bit(plan.group)),
        slot(plan.adjacent ? lane_id() >> plan.column_bits : lane_id() & (plan.group - 1)),
        index(locate(plan, shape, tile, column)),
        plan_(plan),
        shape_(shape),
        n_(int(plan.n)),
        chunks_((int(plan.n) + plan.group * kChunk - 1) >> highest_bit(plan.group * kChunk)) {}

  __device__ bool exists() const { return tile < plan_.tiles; }
  // Whether every item of for_items() is an entry.
  __device__ bool full() const { return index.live && n_ == chunks_ * group * kChunk; }
  __device__ LaneGroup lanes() const { return plan_.adjacent ? LaneGroup{plan_.columns, 32} : LaneGroup{1, group}; }
  __device__ T first(const Items& x) const { return from_lane(x[0], plan_.adjacent ? column : column * group); }

  // Calls body(i) for the items that hold entries, and for some behind a vector's last one. Unrolled, as registers have
  // no index.
  template <class Body>
  __device__ __forceinline__ void for_items(Body body) const {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c >= chunks_) break;
#pragma unroll
      for (int v = 0; v < kChunk; ++v) body(c * kChunk + v);
    }
  }

  __device__ __forceinline__ void load(const In* data, const Strides& strides, Items& x, T padding) const {
    Operand<const In> from(data, strides, shape_, plan_, index, 0);
    if (plan_.packs && !plan_.staged) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        T(&chunk)[kChunk] = reinterpret_cast<T(&)[kChunk]>(x[c * kChunk]);
        int j = (c * group + slot) * kChunk;
        if (index.live && j < n_)
          unpack<In>(load_constant_pack(from.at + j), chunk);
        else
#pragma unroll
          for (T& v : chunk) v = padding;
      }
      return;
    }
    In* stage = stage_in(from.at);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      int j = i * group + slot;
      x[i] = padding;
      if (index.live && j < n_) x[i] = widen(stage ? stage[staged(j)] : load_constant(from.entry(j)));
    }
  }

  __device__ __forceinline__ void store(In* data, const Strides& strides, const Items& y) const {
    Operand<In> to(data, strides, shape_, plan_, index, 0);
    if (plan_.packs && !plan_.staged) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const T(&chunk)[kChunk] = reinterpret_cast<const T(&)[kChunk]>(y[c * kChunk]);
        int j = (c * group + slot) * kChunk;
        if (index.live && j < n_) *reinterpret_cast<uint4*>(to.at + j) = pack<In>(chunk);
      }
      return;
    }
    In* stage = plan_.staged ? stage_memory() : nullptr;
    if (stage) warp_barrier();
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      int j = i * group + slot;
      if (index.live && j < n_) (stage ? stage[staged(j)] : *to.entry(j)) = narrow<In>(y[i]);
    }
    if (stage) {
      warp_barrier();
      In* first = to.at - column * int64_t(n_);
      move_rows([&](int e, int u) { return stage[gapped(e) + u * kGappedWarp]; },
                [&](int e, int u, In v) { first[e + u * kWarpSize] = v; });
    }
  }

 private:
  static constexpr int kStagedBatch = 8;  // entries that a lane reads before it writes them

  __device__ In* stage_memory() const { return shared_memory<In>(warp_id() * kStagedBytes); }
  // One entry is left out after every 32: lanes that each read a row of their own then seldom hit the same bank.
  __device__ static int gapped(int e) { return e + e / kWarpSize; }
  static constexpr int kGappedWarp = kWarpSize + 1;
  __device__ int staged(int j) const { return gapped(column * n_ + j); }
  __device__ int staged_entries() const {
    int64_t left = plan_.lanes - int64_t(tile % plan_.tiles_per_line) * plan_.columns;
    return n_ * int(left < plan_.columns ? left : plan_.columns);
  }
  // The warp's rows, one after another, in shared memory; null where they are not staged.
  __device__ __forceinline__ In* stage_in(const In* row) const {
    if (!plan_.staged) return nullptr;
    In* stage = stage_memory();
    const In* first = row - column * int64_t(n_);
    warp_barrier();
    move_rows([&](int e, int u) { return load_constant(first + e + u * kWarpSize); },
              [&](int e, int u, In v) { stage[gapped(e) + u * kGappedWarp] = v; });
    warp_barrier();
    return stage;
  }
  // Calls write(e, u, read(e, u)) for all entries e + u * kWarpSize of the warp's rows, a batch at a time. Before each
  // turn all entries in front of e - lane_id() have been moved, by all lanes together.
  template <class Read, class Write>
  __device__ __forceinline__ void move_rows(Read read, Write write) const {
    constexpr int kBatchEntries = kStagedBatch * kWarpSize;
    const int end = staged_entries();
#pragma unroll 1
    for (int e = lane_id(); e - lane_id() < end; e += kBatchEntries) {
      if (e - lane_id() <= end - kBatchEntries)
        move_batch(e, e + kBatchEntries, read, write);
      else if (e < end)
        move_batch(e, end, read, write);
    }
  }
  // All entries are read before the first is written, so that their latencies overlap. Behind the end entry e is read
  // once more, as a branch would keep the reads apart.
  template <class Read, class Write>
  __device__ __forceinline__ void move_batch(int e, int end, Read read, Write write) const {
    In batch[kStagedBatch];
#pragma unroll
    for (int u = 0; u < kStagedBatch; ++u) batch[u] = read(e, e + u * kWarpSize < end ? u : 0);
#pragma unroll
    for (int u = 0; u < kStagedBatch; ++u)
      if (e + u * kWarpSize < end) write(e, u, batch[u]);
  }

  const Plan& plan_;
  const Shape& shape_;
  const int n_, chunks_;
};

}  // namespace cuda
}  // namespace hypersimplex
