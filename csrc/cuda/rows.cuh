// How the kernels that order and pool divide vectors among teams. A team is a warp, which takes one vector or several
// short ones at a time, or a block, which takes one vector or a tile of a long one. Numbers are read and written
// through a switch on the storage type, so that one kernel serves all types.
#pragma once

#include <algorithm>

#include "block.cuh"
#include "launch.cuh"

namespace hypersimplex {
namespace cuda {

inline bool empty(const Shape& shape) { return shape.outer * shape.inner * shape.n1 * shape.n2 == 0; }

struct RowPlan {
  Regime regime;     // short: teams are warps; block: a block per vector; grid: `tiles` blocks per vector
  bool adjacent;     // neighbouring vectors are neighbours in memory, entries are not
  int group;         // threads per vector: a power of two up to 32, or the block
  int columns;       // vectors per team, a power of two
  int threads;       // per block
  int share;         // entries of a vector per tile
  int shared_bytes;  // per block
  int64_t n, lanes, teams_per_line, tiles;
  int64_t work_items;   // of all vectors; a team takes one at a time
  uint64_t inverse_n2;  // inverse_of(Shape::n2)

  // Threads that hold `items` entries each, with `thread_bytes` of shared memory; at most `most_threads` of them per
  // vector, `tile_threads` per tile.
  RowPlan(const Problem& p, const Limits& limits, int items, int thread_bytes, int most_threads, int tile_threads) {
    const Forced forced = forced_regime();
    const int64_t needed = ceil_div(p.n, items);
    int most = 32;
    while (2 * most <= most_threads && 2 * most * thread_bytes <= limits.shared_per_block) most *= 2;
    adjacent = p.adjacent;
    n = p.n;
    lanes = p.lanes;
    inverse_n2 = inverse_of(p.n2);
    const bool free = !forced.set || forced.regime == Regime::kCluster;
    if (needed <= 32 && (free || forced.regime == Regime::kShort)) {
      regime = Regime::kShort;
      group = power_of_two(needed, 1, 32);
      threads = tuning::kShortThreads;
    } else if (needed <= most && (free || forced.regime != Regime::kGrid)) {
      regime = Regime::kBlock;
      group = threads = power_of_two(needed, 64, most);
    } else {
      regime = Regime::kGrid;
      group = threads =
          forced.set && forced.threads ? power_of_two(forced.threads, 64, most) : std::min(tile_threads, most);
    }
    columns = group < 32 ? 32 / group : 1;
    shared_bytes = threads * thread_bytes;
    share = group * items;
    tiles = ceil_div(n, share);
    teams_per_line = ceil_div(lanes, columns);
    work_items = p.lines * teams_per_line * tiles;
  }

  int64_t vectors(const Shape& shape) const { return shape.outer * shape.inner; }
  // One team per work item, but no more blocks than a grid may have: teams then take several in turn.
  Plan launch_plan() const { return launch_of(ceil_div(work_items, threads / team_size()), threads, shared_bytes); }
  static Plan launch_of(int64_t blocks, int threads, int shared_bytes) {
    constexpr int64_t kMostBlocks = 1 << 30;
    Plan plan{};
    plan.regime = Regime::kBlock;
    plan.blocks = 1;
    plan.teams = int(std::min(blocks, kMostBlocks));
    plan.threads = threads;
    plan.shared_bytes = shared_bytes;
    return plan;
  }
  __host__ __device__ int team_size() const { return regime == Regime::kShort ? 32 : threads; }
};

// A team, seen by one of its threads.
class RowTeam {
 public:
  __device__ explicit RowTeam(const RowPlan& plan) : warps_(plan.regime == Regime::kShort), size_(plan.team_size()) {}

  __device__ int size() const { return size_; }
  __device__ int rank() const { return warps_ ? lane_id() : int(threadIdx.x); }
  __device__ int in_block() const { return warps_ ? warp_id() : 0; }
  __device__ int64_t first() const { return warps_ ? int64_t(blockIdx.x) * warp_count() + warp_id() : blockIdx.x; }
  __device__ int64_t step() const { return warps_ ? int64_t(gridDim.x) * warp_count() : gridDim.x; }
  __device__ void barrier() const {
    if (warps_)
      warp_barrier();
    else
      block_barrier();
  }

 private:
  const bool warps_;
  const int size_;
};

// What a team works on at a time: `columns` vectors, the first of number `vector`, and of each the `count` entries from
// entry `begin` on.
struct WorkItem {
  int64_t outer, inner, vector, tile, begin;
  int columns, count;

  __device__ WorkItem(const RowPlan& plan, const Shape& shape, int64_t number) {
    const int64_t team = number / plan.tiles, line = team / plan.teams_per_line;
    const int64_t lane = (team - line * plan.teams_per_line) * plan.columns, left = plan.lanes - lane;
    tile = number - team * plan.tiles;
    begin = tile * plan.share;
    columns = int(left < plan.columns ? left : plan.columns);
    count = int(plan.n - begin < plan.share ? plan.n - begin : plan.share);
    outer = shape.inner == 1 ? lane : line;
    inner = shape.inner == 1 ? 0 : lane;
    vector = shape.inner == 1 ? lane : line * plan.lanes + lane;
  }
};

// Where the entries of a work item lie in one tensor: operator() gives the offset of entry j of a column.
class StridedIndex {
 public:
  __device__ StridedIndex(const Strides& strides, const Shape& shape, const RowPlan& plan, const WorkItem& work)
      : first_(work.outer * strides.outer + work.inner * strides.inner),
        column_(shape.inner == 1 ? strides.outer : strides.inner),
        strides_(strides),
        shape_(shape),
        inverse_(plan.inverse_n2) {}
  __device__ __forceinline__ int64_t operator()(int column, int64_t j) const {
    const int64_t at = first_ + column * column_;
    if (shape_.n1 == 1) return at + j * strides_.n2;
    const int64_t j1 = quotient(j, inverse_);
    return at + j1 * strides_.n1 + (j - j1 * shape_.n2) * strides_.n2;
  }

 private:
  const int64_t first_, column_;
  const Strides& strides_;
  const Shape& shape_;
  const uint64_t inverse_;
};

// Calls body(column, j) for j in [0, width) of every column, where j counts from the work item's first entry.
// Neighbouring threads take neighbours in memory, so that accesses coalesce. `width` is a power of two if there are
// several columns.
template <class Body>
__device__ __forceinline__ void for_places(const RowPlan& plan, const RowTeam& team, int width, Body body) {
#pragma unroll 4
  for (int q = team.rank(); q < plan.columns * width; q += team.size()) {
    if (plan.columns == 1)
      body(0, q);
    else if (plan.adjacent)
      body(q & (plan.columns - 1), q / plan.columns);
    else
      body(q / width, q & (width - 1));
  }
}

// An entry of a caller's order of n elements. It is checked here, as nothing else keeps it within the vector.
__device__ __forceinline__ int64_t load_place(const int32_t* order, int64_t n) {
  const int64_t place = load_constant(order);
  assert(place >= 0 && place < n && "order out of range");
  return place;
}

// ---- one number of a tensor whose storage type is known at run time ----

__device__ __forceinline__ float load_float(const void* data, int64_t at, DType dtype) {
  if (dtype == DType::kFloat32) return load_constant(static_cast<const float*>(data) + at);
  if (dtype == DType::kFloat16) return widen(load_constant(static_cast<const __half*>(data) + at));
  return widen(load_constant(static_cast<const __nv_bfloat16*>(data) + at));
}
__device__ __forceinline__ double load_double(const void* data, int64_t at, DType dtype) {
  return dtype == DType::kFloat64 ? load_constant(static_cast<const double*>(data) + at)
                                  : double(load_float(data, at, dtype));
}
__device__ __forceinline__ void store_float(void* data, int64_t at, DType dtype, float v) {
  if (dtype == DType::kFloat32)
    static_cast<float*>(data)[at] = v;
  else if (dtype == DType::kFloat16)
    static_cast<__half*>(data)[at] = narrow<__half>(v);
  else
    static_cast<__nv_bfloat16*>(data)[at] = narrow<__nv_bfloat16>(v);
}
// Rounded once.
__device__ __forceinline__ void store_double(void* data, int64_t at, DType dtype, double v) {
  if (dtype == DType::kFloat64)
    static_cast<double*>(data)[at] = v;
  else if (dtype == DType::kFloat32)
    static_cast<float*>(data)[at] = float(v);
  else
    store_float(data, at, dtype, round_to_odd(v));
}
// As it is, bit by bit.
__device__ __forceinline__ void copy_number(const void* from, int64_t from_at, void* to, int64_t to_at, DType dtype) {
  if (dtype == DType::kFloat64)
    static_cast<uint64_t*>(to)[to_at] = static_cast<const uint64_t*>(from)[from_at];
  else if (dtype == DType::kFloat32)
    static_cast<uint32_t*>(to)[to_at] = static_cast<const uint32_t*>(from)[from_at];
  else
    static_cast<uint16_t*>(to)[to_at] = static_cast<const uint16_t*>(from)[from_at];
}

}  // namespace cuda
}  // namespace hypersimplex
