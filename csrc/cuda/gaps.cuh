// Vectors of which a is large beside b, as in csrc/cpu/order/isotonic_terms.h: gaps in a that no block can reach across
// are narrowed before neighbours are pooled, and results are computed from differences of a block's own entries.
#pragma once

#include "pool.cuh"
#include "rows.cuh"

namespace hypersimplex {
namespace cuda {

// In the workspace, for projections y = a - v alone.
struct Gaps {
  int64_t vectors, chunks;
  double* widest;  // [vectors] what the gaps are narrowed to, or -1 where they stay as they are; null: no projection
  double* levels;  // [vectors, chunks] the narrowed a of a chunk's first element, where they are narrowed

  Gaps(const IsotonicArgs& args, int64_t vectors, int64_t n, void* workspace)
      : vectors(vectors), chunks(ceil_div(n, kChunkElements)), widest(nullptr), levels(nullptr) {
    if (args.result == IsotonicResult::kRegression) return;
    widest = static_cast<double*>(workspace);
    levels = widest + vectors;
  }
  size_t bytes(const IsotonicArgs& args) const {
    return args.result == IsotonicResult::kRegression ? 0 : size_t(vectors * (chunks + 1)) * sizeof(double);
  }
};

// The terms a and b of a work item's vectors.
class Terms {
 public:
  __device__ Terms(const IsotonicArgs& args, const RowPlan& plan, const WorkItem& work, const Gaps& gaps)
      : args_(args),
        gaps_(gaps),
        n_(plan.n),
        vector_(work.vector),
        a_(args.a.strides, args.shape, plan, work),
        b_(args.b.strides, args.shape, plan, work) {}

  __device__ __forceinline__ double a(int column, int64_t j) const {
    if (!gaps_.widest) return term(args_.a, a_, column, j);
    const double widest = gaps_.widest[vector_ + column];
    if (widest < 0) return beyond(column, 0, j);
    const int64_t chunk = j / kChunkElements;
    double level = gaps_.levels[(vector_ + column) * gaps_.chunks + chunk];
    for (int64_t i = chunk * kChunkElements + 1; i <= j; ++i) level -= gap(column, i, widest);
    return level;
  }
  __device__ __forceinline__ double b(int column, int64_t j) const { return term(args_.b, b_, column, j); }
  // b while neighbours are pooled, and what it is there relative to: log sum exp(b) is to keep what exp(b) / sum exp(b)
  // is made of.
  __device__ __forceinline__ double b_pooled(int column, int64_t j) const {
    return b_is_relative() ? args_.b.scale * (entry(args_.b, b_, column, j) - entry(args_.b, b_, column, 0))
                           : b(column, j);
  }
  __device__ __forceinline__ double b_origin(int column) const { return b_is_relative() ? b(column, 0) : 0; }
  // b before the logarithm, or its exponential where that is not taken.
  __device__ double weight(int64_t j) const {
    return args_.b.logarithm ? args_.b.scale * entry(args_.b, b_, 0, j) : exp(b(0, j));
  }
  // What a is at j beside what it is at i: differences first, as they are exact where entries are near.
  __device__ __forceinline__ double beyond(int column, int64_t i, int64_t j) const {
    return args_.a.scale * (entry(args_.a, a_, column, j) - entry(args_.a, a_, column, i));
  }
  __device__ __forceinline__ double gap(int column, int64_t j, double widest) const {
    return j == 0 ? 0 : fmin(beyond(column, j, j - 1), widest);
  }
  // What its gaps are narrowed to where digits are at stake.
  __device__ double narrowing() const {
    const double span = b(0, 0) - b(0, n_ - 1);
    const double bound = args_.divergence == Divergence::kKL ? span + 2 * log(double(n_)) : span;
    const double first = entry(args_.a, a_, 0, 0), last = entry(args_.a, a_, 0, n_ - 1);
    const double harmless = args_.dtype == DType::kFloat64 ? 1 : 4096;
    const bool finite = is_finite(first) && is_finite(last) && is_finite(bound);
    return finite && beyond(0, n_ - 1, 0) > harmless * bound ? 2 * bound : -1;
  }

 private:
  __device__ __forceinline__ bool b_is_relative() const { return args_.share != nullptr && !args_.b.logarithm; }
  __device__ __forceinline__ double term(const IsotonicTerm& t, const StridedIndex& index, int column,
                                         int64_t j) const {
    const double v = t.scale * entry(t, index, column, j);
    return t.logarithm ? log(v) : v;
  }
  __device__ __forceinline__ double entry(const IsotonicTerm& t, const StridedIndex& index, int column,
                                          int64_t j) const {
    return t.data ? load_double(t.data, index(column, j), args_.dtype) : double(n_ - j);
  }

  const IsotonicArgs& args_;
  const Gaps& gaps_;
  const int64_t n_, vector_;
  const StridedIndex a_, b_;
};

// The plan in which every vector is a work item by itself.
inline RowPlan vector_by_vector(RowPlan plan) {
  plan.columns = 1;
  plan.teams_per_line = plan.lanes;
  plan.tiles = 1;
  return plan;
}

// Vector by vector, a block each: whether its gaps are to be narrowed, and the levels of its chunks if so.
__global__ void __launch_bounds__(tuning::kPassThreads)
    measure_gaps(const __grid_constant__ IsotonicArgs args, const __grid_constant__ RowPlan plan,
                 const __grid_constant__ Gaps gaps) {
  for (int64_t vector = blockIdx.x; vector < gaps.vectors; vector += gridDim.x) {
    const Terms terms(args, plan, WorkItem(plan, args.shape, vector), gaps);
    const double widest = terms.narrowing();
    if (threadIdx.x == 0) gaps.widest[vector] = widest;
    if (widest < 0) continue;
    double* levels = gaps.levels + vector * gaps.chunks;
    for (int64_t chunk = threadIdx.x; chunk < gaps.chunks; chunk += blockDim.x) {
      const int64_t begin = chunk * kChunkElements;
      double drop = 0;
      for (int64_t j = begin; j < begin + kChunkElements && j < plan.n; ++j) drop += terms.gap(0, j, widest);
      levels[chunk] = drop;
    }
    block_barrier();
    // Before each turn `level` is the narrowed a of the last element in front of the chunk.
    double level = 0;
    for (int64_t chunk = 0; threadIdx.x == 0 && chunk < gaps.chunks; ++chunk) {
      const double drop = levels[chunk];
      levels[chunk] = level - terms.gap(0, chunk * kChunkElements, widest);
      level -= drop;
    }
    block_barrier();
  }
}

// Chunk by chunk of the vectors whose gaps were narrowed, a warp each: the results of the blocks that begin there.
__global__ void __launch_bounds__(tuning::kPassThreads, 1)
    write_by_differences(const __grid_constant__ IsotonicArgs args, const __grid_constant__ RowPlan plan,
                         const __grid_constant__ Gaps gaps) {
  const bool entropic = args.divergence == Divergence::kKL;
  const bool exponentiated = args.result == IsotonicResult::kExpPrimal;
  const int64_t step = int64_t(gridDim.x) * warp_count();
  for (int64_t number = int64_t(blockIdx.x) * warp_count() + warp_id(); number < gaps.vectors * gaps.chunks;
       number += step) {
    const int64_t vector = number / gaps.chunks, chunk = number - vector * gaps.chunks;
    if (gaps.widest[vector] < 0) continue;
    const Blocks* words = args.blocks + vector * gaps.chunks;
    const WorkItem work(plan, args.shape, vector);
    const Terms terms(args, plan, work, gaps);
    const StridedIndex out(args.out_strides, args.shape, plan, work), order(args.order_strides, args.shape, plan, work);
    // Each turn writes the block that begins at the lowest of `starts`, and removes that.
    for (unsigned starts = words[chunk]; starts; starts &= starts - 1) {
      const int64_t start = chunk * kChunkElements + lowest_bit(starts);
      int64_t end = chunk * kChunkElements + kChunkElements;
      if (starts & (starts - 1)) {
        end = chunk * kChunkElements + lowest_bit(starts & (starts - 1));
      } else {
        int64_t behind = chunk + 1;
        while (behind < gaps.chunks && !words[behind]) ++behind;
        end = behind < gaps.chunks ? behind * kChunkElements + lowest_bit(words[behind]) : plan.n;
      }
      const double b_start = terms.b(0, start);
      double sum_a = 0, sum_b = 0;
      for (int64_t j = start + lane_id(); j < end; j += kWarpSize) {
        const double beyond = terms.beyond(0, start, j);
        sum_a += entropic ? exp(beyond) : beyond;
        if (!entropic)
          sum_b += terms.b(0, j) - b_start;
        else
          sum_b += exponentiated ? terms.weight(j) : exp(terms.b(0, j) - b_start);
      }
      for (int flip = 1; flip < kWarpSize; flip *= 2) {
        sum_a += from_lane_xor(sum_a, flip);
        sum_b += from_lane_xor(sum_b, flip);
      }
      const double size = double(end - start);
      for (int64_t j = start + lane_id(); j < end; j += kWarpSize) {
        const double beyond = terms.beyond(0, start, j);
        double y = b_start + (sum_b / size + (beyond - sum_a / size));
        if (entropic) y = b_start + (log(sum_b / sum_a) + beyond);
        if (exponentiated) y = entropic ? sum_b * (exp(beyond) / sum_a) : exp(y);
        const int64_t place = args.order ? load_place(args.order + order(0, j), plan.n) : j;
        store_double(args.out, out(0, place), args.dtype, args.scale * y);
      }
    }
  }
}

}  // namespace cuda
}  // namespace hypersimplex
