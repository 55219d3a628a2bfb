// A team is the block, or the blocks, that work on one tile: one vector, or several that lie side by side in memory.
// Its threads reduce their sums column by column, always in the same order, and warp 0 of every block gets the same
// totals. It decides what follows from them, and tells its block through shared memory.
#pragma once

#include "block.cuh"
#include "tuning.h"

namespace hypersimplex {
namespace cuda {

// What a sweep leaves per thread and, reduced, per column: counts and sums, which are added, and the extremes low and
// high where they are wanted.
template <int kCounts, int kSums, bool kExtremes = false>
struct Sums {
  unsigned count[kCounts] = {};
  double sum[kSums] = {};
  double low = kInfinity<double>, high = -kInfinity<double>;
};
template <int kCounts, int kSums, bool kExtremes = false>
struct Totals {
  static constexpr int kAdded = kCounts + kSums, kAll = kAdded + (kExtremes ? 2 : 0);
  static constexpr int kNarrow = 3;  // sum[0], count[0], count[1]: all that most sweeps need
  double v[kAll];

  __device__ double count(int i) const { return v[1 + i]; }
  __device__ double sum(int i) const { return v[i == 0 ? 0 : kCounts + i]; }
  __device__ double low() const { return v[kAdded]; }
  __device__ double high() const { return v[kAdded + 1]; }

  __device__ void take(const Sums<kCounts, kSums, kExtremes>& own) {
    v[0] = own.sum[0];
#pragma unroll
    for (int i = 0; i < kCounts; ++i) v[1 + i] = own.count[i];
#pragma unroll
    for (int i = 1; i < kSums; ++i) v[kCounts + i] = own.sum[i];
    if constexpr (kExtremes) {
      v[kAdded] = own.low;
      v[kAdded + 1] = own.high;
    }
  }
  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kAll; ++i) v[i] = i < kAdded ? 0 : i == kAdded ? kInfinity<double> : -kInfinity<double>;
  }
  // Takes member(i), the i-th number of another; all of them, or the narrow ones.
  template <class Member>
  __device__ __forceinline__ void combine(bool wide, Member member) {
#pragma unroll
    for (int i = 0; i < kAll; ++i) {
      if (i >= kNarrow && !wide) break;
      double other = member(i);
      v[i] = i < kAdded ? v[i] + other : i == kAdded ? fmin(v[i], other) : fmax(v[i], other);
    }
  }
  // As reduce() in warp.cuh, for all numbers.
  __device__ __forceinline__ void combine_lanes(bool wide, LaneGroup lanes) {
#pragma unroll 1
    for (int flip = lanes.first; flip < lanes.end; flip *= 2)
      combine(wide, [&](int i) { return from_lane_xor(v[i], flip); });
  }
};

// Global memory through which the blocks of a grid's teams exchange sums: first a counter of arrivals for every team,
// then the sums.
struct GridWorkspace {
  static constexpr int kArrivalBytes = 128;  // a cache line per team, so that teams do not slow one another down
  static size_t bytes(const Plan& plan) {
    if (plan.regime != Regime::kGrid || plan.blocks == 1) return 0;
    return size_t(plan.teams) * (kArrivalBytes + size_t(2) * plan.blocks * plan.columns * kMaxSums * sizeof(double));
  }
  static size_t arrival_bytes(const Plan& plan) { return bytes(plan) ? size_t(plan.teams) * kArrivalBytes : 0; }
};

class Team {
 public:
  __device__ Team(const Plan& plan, void* workspace)
      : plan_(plan),
        workspace_(static_cast<char*>(workspace)),
        rank_(int(blockIdx.x) % plan.blocks),
        number_(int(blockIdx.x) / plan.blocks) {}

  __device__ int number() const { return number_; }
  __device__ int rank() const { return rank_; }
  __device__ int column() const { return int(threadIdx.x) & (plan_.columns - 1); }
  __device__ LaneGroup lanes() const { return {plan_.columns, kWarpSize}; }
  // Whether this thread acts for its column: one lane of warp 0 each.
  __device__ bool decides() const { return int(threadIdx.x) < plan_.columns; }

  // The states of the team's vectors, which the kernel keeps in shared memory behind what the team needs itself, and
  // the size of both together.
  template <class State>
  __device__ State* states() const {
    return shared_memory<State>(signal_bytes() + 16);
  }
  template <class State>
  __device__ int bytes() const {
    return signal_bytes() + 16 + plan_.columns * int(sizeof(State));
  }

  // Leaves the totals of a lane's column in every lane of warp 0; other warps leave with nothing. All threads of the
  // team come here, and the caller lets them pass a block_barrier() before they come again. A thread has sums of V
  // columns: those from V * (thread % (columns / V)) on.
  template <int V, int kCounts, int kSums, bool kExtremes>
  __device__ __forceinline__ auto reduce(const Sums<kCounts, kSums, kExtremes> (&own)[V], bool wide) {
    using All = Totals<kCounts, kSums, kExtremes>;
    static_assert(All::kAll <= kMaxSums && kCounts >= 2, "no room");
    const int width = plan_.columns, first_warp = warp_id() == 0;
    All each[V];
#pragma unroll
    for (int v = 0; v < V; ++v) each[v].take(own[v]);
    const int lane_column = share_columns(each, wide);
    All& all = each[0];
    all.combine_lanes(wide, lanes());

    // First the warps of a block combine their sums, then the blocks of the team. Before each turn `all` holds the
    // totals of a warp or, in warp 0, of a block. There are at most two turns.
    const Level last = plan_.blocks == 1               ? Level::kWarps
                       : plan_.regime == Regime::kGrid ? Level::kGrid
                                                       : Level::kCluster;
    for (Level level = Level::kWarps;;) {
      const bool warps = level == Level::kWarps, cluster = level == Level::kCluster;
      const int member = warps ? warp_id() : cluster ? 0 : rank_, members = warps ? warp_count() : plan_.blocks;
      // Of member 0's numbers, side by side; the next member's come behind all columns'.
      double* place = places(level, level == Level::kWarps ? lane_column : column());
      if (lane_id() < width && (first_warp || warps))
#pragma unroll
        for (int i = 0; i < All::kAll; ++i) place[member * width * kMaxSums + i] = all.v[i];
      wait_at(level);
      if (first_warp) {
        place = places(level, column());
        all.clear();
        // A column's lanes take its members in turns; which lane takes which does not depend on who arrives first.
#pragma unroll 1
        for (int m = lane_id() >> plan_.column_bits; m < members; m += kWarpSize >> plan_.column_bits)
          all.combine(wide, [&](int i) {
            return cluster ? load_from_cluster(place + i, m) : load_from_blocks(place + m * width * kMaxSums + i);
          });
        all.combine_lanes(wide, lanes());
      }
      if (level == last) break;
      level = last;
    }
    ++round_;
    return all;
  }

  template <int kCounts, int kSums, bool kExtremes>
  __device__ __forceinline__ auto reduce(const Sums<kCounts, kSums, kExtremes>& own, bool wide) {
    return reduce(reinterpret_cast<const Sums<kCounts, kSums, kExtremes>(&)[1]>(own), wide);
  }

  // Runs act() once per column, in warp 0, and tells all threads of the block what the results are, or-ed.
  template <class Act>
  __device__ int decide(Act act) {
    if (warp_id() == 0) {
      int result = 0;
      if (decides()) result = act();
      result = either(result);
      if (lane_id() == 0) *signal() = result;
    }
    block_barrier();
    return *signal();
  }

  // The same right after another decision, which threads may still be reading.
  template <class Act>
  __device__ int decide_next(Act act) {
    block_barrier();
    return decide(act);
  }

  // The last of a block's acts: nobody leaves while others may read its shared memory.
  __device__ void leave() const {
    if (plan_.regime == Regime::kCluster) cluster_barrier();
  }

 private:
  enum class Level { kWarps, kCluster, kGrid };

  // Of a lane's V columns it keeps one, each[0], with what the lanes have of it that differ from it in V - 1 bits;
  // returns which. Before each turn it holds `left` columns, from `first` on.
  template <int V, class All>
  __device__ __forceinline__ int share_columns(All (&each)[V], bool wide) const {
    if constexpr (V == 1) {
      return column();
    } else {
      const int slots = plan_.columns / V;
      int first = lane_id() % slots * V, flip = slots;
#pragma unroll
      for (int left = V; left > 1; left /= 2, flip *= 2) {
        const bool upper = lane_id() & flip;  // keeps the upper half, gives the lower one
        first += upper ? left / 2 : 0;
#pragma unroll
        for (int v = 0; v < left / 2; ++v) {
          All& low = each[v];
          All& high = each[v + left / 2];
          if (upper) swap_numbers(low, high);
          low.combine(wide, [&](int i) { return from_lane_xor(high.v[i], flip); });
        }
      }
      return first;
    }
  }
  template <class All>
  __device__ static void swap_numbers(All& a, All& b) {
#pragma unroll
    for (int i = 0; i < All::kAll; ++i) {
      const double v = a.v[i];
      a.v[i] = b.v[i];
      b.v[i] = v;
    }
  }

  // Where sums are exchanged, column by column. Blocks use two sets of places in turn: who writes the next sums does
  // not wait for who still reads. A cluster's block keeps its sums itself, at the place of member 0.
  __device__ double* places(Level level, int column) const {
    const int set = plan_.columns * kMaxSums, own = column * kMaxSums;
    if (level == Level::kWarps) return shared_memory<double>(0) + own;
    if (level == Level::kCluster) return shared_memory<double>((warp_count() + int(round_ % 2)) * set * 8) + own;
    return reinterpret_cast<double*>(workspace_ + plan_.teams * GridWorkspace::kArrivalBytes) +
           (int64_t(number_) * 2 + round_ % 2) * plan_.blocks * set + own;
  }
  __device__ void wait_at(Level level) const {
    if (level == Level::kWarps)
      block_barrier();
    else if (level == Level::kCluster)
      cluster_barrier();
    else
      grid_barrier(reinterpret_cast<unsigned*>(workspace_ + int64_t(number_) * GridWorkspace::kArrivalBytes),
                   plan_.blocks, round_ + 1);
  }

  // Shared memory: sums of the warps, sums of the block for a cluster to read, the signal, what the kernel keeps.
  __device__ int signal_bytes() const { return (warp_count() + 2) * plan_.columns * kMaxSums * int(sizeof(double)); }
  __device__ int* signal() const { return shared_memory<int>(signal_bytes()); }

  const Plan& plan_;
  char* const workspace_;
  const int rank_, number_;
  unsigned round_ = 0;
};

}  // namespace cuda
}  // namespace hypersimplex
