// Short vectors: a group of 1 to 32 lanes each, a vector's entries in the registers of its lanes, no barriers but those
// of the warp. Few lanes with many entries each, rather than many with few: what the search works out per vector is
// worked out by all lanes of a warp at once, for as many vectors as it holds.
#pragma once

#include "block.cuh"
#include "tile.cuh"

namespace hypersimplex {
namespace cuda {

template <class In>
class Short {
 public:
  using T = Compute<In>;
  static constexpr int kItems = tuning::kShortBytes / int(sizeof(T));
  static constexpr int kChunk = kPack<In>, kChunks = kItems / kChunk;
  using Items = T[kItems];

  const int tile;
  const int group, column, slot;
  const Place place;

  __device__ Short(const Plan& plan, const Shape& shape)
      : tile(int(blockIdx.x) * warp_count() + warp_id()),
        group(plan.group),
        column(plan.adjacent ? lane_id() % plan.columns : lane_id() / plan.group),
        slot(plan.adjacent ? lane_id() / plan.columns : lane_id() % plan.group),
        place(locate(plan, shape, tile, column)),
        plan_(plan),
        shape_(shape),
        n_(int(plan.n)),
        chunks_((int(plan.n) + plan.group * kChunk - 1) / (plan.group * kChunk)) {}

  __device__ bool exists() const { return tile < plan_.tiles; }
  __device__ Peers peers() const { return plan_.adjacent ? Peers{plan_.columns, 32} : Peers{1, group}; }
  __device__ T first(const Items& x) const { return from_lane(x[0], plan_.adjacent ? column : column * group); }

  // body(i) for the items that hold entries, unrolled; the items behind a vector's last entry among them.
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
    Operand<const In> from(data, strides, shape_, plan_, place, 0);
    if (plan_.packs && !plan_.staged) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        T(&chunk)[kChunk] = reinterpret_cast<T(&)[kChunk]>(x[c * kChunk]);
        int j = (c * group + slot) * kChunk;
        if (place.live && j < n_)
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
      if (place.live && j < n_) x[i] = widen(stage ? stage[staged(j)] : load_constant(from.entry(j)));
    }
  }

  __device__ __forceinline__ void store(In* data, const Strides& strides, const Items& y) const {
    Operand<In> to(data, strides, shape_, plan_, place, 0);
    if (plan_.packs && !plan_.staged) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const T(&chunk)[kChunk] = reinterpret_cast<const T(&)[kChunk]>(y[c * kChunk]);
        int j = (c * group + slot) * kChunk;
        if (place.live && j < n_) *reinterpret_cast<uint4*>(to.at + j) = pack<In>(chunk);
      }
      return;
    }
    In* stage = plan_.staged ? stage_memory() : nullptr;
    if (stage) warp_barrier();
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      int j = i * group + slot;
      if (place.live && j < n_) (stage ? stage[staged(j)] : *to.entry(j)) = narrow<In>(y[i]);
    }
    if (stage) {
      warp_barrier();
      In* first = to.at - column * int64_t(n_);
      for (int e = lane_id(); e < staged_entries(); e += kWarpSize) first[e] = stage[gapped(e)];
    }
  }

 private:
  __device__ In* stage_memory() const { return shared_memory<In>(warp_id() * kStagedBytes); }
  // One entry is left out after every 32, so that lanes that each read a row of their own meet in few banks.
  __device__ static int gapped(int e) { return e + e / 32; }
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
#pragma unroll 8
    for (int e = lane_id(); e < staged_entries(); e += kWarpSize) stage[gapped(e)] = load_constant(first + e);
    warp_barrier();
    return stage;
  }

  const Plan& plan_;
  const Shape& shape_;
  const int n_, chunks_;
};

}  // namespace cuda
}  // namespace hypersimplex
