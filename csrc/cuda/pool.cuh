// Pooling adjacent violators in parallel. A vector is cut into chunks of 32 elements; a thread pools a chunk by itself,
// then neighbouring pieces are joined, pair by pair, in a tree. Both pieces of a pair are monotone, so that one block
// grows across their seam. Its value is a root: the mean of the blocks left of the seam that lie below it and the
// blocks right of it that lie above it. It is found between brackets by Newton's method, each step a search in both
// pieces.
//
// Sums are only ever added up, never taken as differences of running totals: large numbers in one block leave the
// others as exact as they are.
#pragma once

#include "block.cuh"
#include "tuning.h"

namespace hypersimplex {
namespace cuda {

constexpr int kChunkElements = 32;

// What a block amounts to: sum w (a - b) and sum w, or log sum exp(a) and log sum exp(b).
struct Mass {
  double first, second;
};

struct Means {
  __device__ static Mass of(double a, double b, double weight) { return {weight * (a - b), weight}; }
  __device__ static Mass nothing() { return {0, 0}; }
  __device__ static Mass join(Mass a, Mass b) { return {a.first + b.first, a.second + b.second}; }
  __device__ static double value(Mass m) { return m.first / m.second; }
};

__device__ __attribute__((noinline)) inline double log_of_sum(double a, double b) {  // of exp(a) + exp(b)
  const double high = fmax(a, b), low = fmin(a, b);
  return low == -kInfinity<double> ? high : high + log1p(exp(low - high));
}
struct LogSums {
  __device__ static Mass of(double a, double b, double) { return {a, b}; }
  __device__ static Mass nothing() { return {-kInfinity<double>, -kInfinity<double>}; }
  __device__ static Mass join(Mass a, Mass b) { return {log_of_sum(a.first, b.first), log_of_sum(a.second, b.second)}; }
  __device__ static double value(Mass m) { return m.first - m.second; }
};

// A vector, or a tile of one, in shared memory (kGapped) or in global memory. The masses of a block are kept at its
// first element; at the others is nothing.
template <bool kGapped>
struct Pieces {
  double *first, *second;  // [chunks * 32] masses; second null: element counts
  uint32_t* words;         // [chunks] bit i: element i of the chunk begins a block
  int *reaching, *ending;  // [chunks] where the block begins that holds the chunk's first element, and where the block
                           // ends that holds its last
  Mass *before, *after;    // [chunks] of the blocks of the piece that begin in chunks before this one, and after it
  int n;

  // A gap after every chunk: lanes that each work on a chunk of their own then seldom hit the same bank.
  __device__ static int slot(int j) { return kGapped ? j + j / kChunkElements : j; }
  __device__ int end_of(int chunk) const {
    const int end = (chunk + 1) * kChunkElements;
    return end < n ? end : n;
  }
  __device__ __forceinline__ Mass mass(int start, int end) const {
    return {first[slot(start)], second ? second[slot(start)] : double(end - start)};
  }
  __device__ __forceinline__ void put(int j, Mass m) const {
    first[slot(j)] = m.first;
    if (second) second[slot(j)] = m.second;
  }

  // Of the block that holds element j.
  __device__ __forceinline__ int start_of_block(int j) const {
    const int chunk = j / kChunkElements;
    const unsigned begun = words[chunk] & ((2u << j % kChunkElements) - 1);
    return begun ? chunk * kChunkElements + highest_bit(begun) : reaching[chunk];
  }
  __device__ __forceinline__ int end_of_block(int j) const {
    const int chunk = j / kChunkElements;
    const unsigned next = words[chunk] & ~((2u << j % kChunkElements) - 1);
    return next ? chunk * kChunkElements + lowest_bit(next) : ending[chunk];
  }
  __device__ __forceinline__ bool alone(int j) const { return start_of_block(j) == j && end_of_block(j) == j + 1; }
  __device__ __forceinline__ Mass mass_at(int j) const { return mass(start_of_block(j), second ? 0 : end_of_block(j)); }
};

// Pools the elements of a chunk: those of its masses that exist. True if all numbers are finite.
template <class Kind, class Memory>
__device__ __forceinline__ bool pool_chunk(const Memory& memory, int chunk) {
  const int begin = chunk * kChunkElements, count = memory.end_of(chunk) - begin;
  memory.before[chunk] = memory.after[chunk] = Kind::nothing();
  memory.reaching[chunk] = begin;
  memory.ending[chunk] = begin + count;
  memory.words[chunk] = 0;
  if (count <= 0) return true;
  unsigned starts = 0;  // of the blocks before the last one,
  int start = 0;        // which begins here
  Mass last = memory.mass(begin, begin + 1);
  double value = Kind::value(last);
  bool finite = is_finite(last.first) && is_finite(last.second);
  // Before each turn the elements in front of j are pooled: values do not rise from block to block, the masses of all
  // blocks but the last are in memory.
  for (int j = 1; j < count; ++j) {
    Mass next = memory.mass(begin + j, begin + j + 1);
    finite = finite && is_finite(next.first) && is_finite(next.second);
    memory.put(begin + j, Kind::nothing());
    const double next_value = Kind::value(next);
    if (!(value < next_value)) {
      memory.put(begin + start, last);
      starts |= 1u << start;
      start = j;
      last = next;
      value = next_value;
      continue;
    }
    last = Kind::join(last, next);
    value = Kind::value(last);
    // The last block takes in the one before it as long as that violates: each turn removes one of `starts`.
    while (starts) {
      const int previous = highest_bit(starts);
      const Mass mass = memory.mass(begin + previous, begin + start);
      if (!(Kind::value(mass) < value)) break;
      memory.put(begin + start, Kind::nothing());
      starts ^= 1u << previous;
      start = previous;
      last = Kind::join(mass, last);
      value = Kind::value(last);
    }
  }
  memory.put(begin + start, last);
  memory.words[chunk] = starts | 1u << start;
  return finite;
}

// What becomes of a seam: the elements from `start` up to `end`, where there are any, are one block from now on.
struct Seam {
  int start, end;
  Mass pooled, before, after;  // of that block, of the left piece's blocks before it, of the right piece's behind it
  Mass left, right;            // of the pieces
};

// The masses at [from, to), within one chunk, by `lanes` lanes of a warp.
template <class Kind, class Memory>
__device__ __forceinline__ Mass sum_masses(const Memory& memory, int from, int to, int lanes) {
  Mass sum = Kind::nothing();
  for (int j = from + (lane_id() & (lanes - 1)); j < to; j += lanes) sum = Kind::join(sum, memory.mass(j, j));
  for (int flip = 1; flip < lanes; flip *= 2)
    sum = Kind::join(sum, {from_lane_xor(sum.first, flip), from_lane_xor(sum.second, flip)});
  return sum;
}

// Finds the seam between chunks [left, middle) and [middle, right). Each group of `lanes` lanes brings a seam of its
// own, or none; all lanes of the warp come here.
template <class Kind, class Memory>
__device__ __forceinline__ Seam find_seam(const Memory& memory, int left, int middle, int right, int lanes,
                                          bool exists) {
  constexpr int kMostSteps = 400;  // where numbers are too large for their sums
  const int seam = middle * kChunkElements;
  int end = seam, last = seam, behind_first = seam;  // of the right piece; the blocks on both sides of the seam
  double low = 0, high = 0, value = 0;
  if (exists) {
    end = memory.end_of(right - 1);
    last = memory.start_of_block(seam - 1);
    behind_first = memory.end_of_block(seam);
    const Mass below = memory.mass(last, seam), above = memory.mass(seam, behind_first);
    low = Kind::value(below);
    high = Kind::value(above);
    value = Kind::value(Kind::join(below, above));
  }
  Seam result{};
  result.start = result.end = seam;
  auto pool = [&](int start, int stop, bool wanted) {
    const int first = start / kChunkElements, final = (stop < end ? stop : end - 1) / kChunkElements;
    const Mass below = sum_masses<Kind>(memory, start, wanted ? memory.end_of(first) : start, lanes);
    const Mass above = sum_masses<Kind>(memory, wanted ? final * kChunkElements : stop, stop, lanes);
    if (!wanted) return Kind::nothing();
    Mass pooled = Kind::join(Kind::join(below, memory.after[first]), Kind::join(memory.before[final], above));
    if (!memory.second) pooled.second = stop - start;
    return pooled;
  };
  // The value of the block that grows across the seam lies between low and high, and so does the one that is tried
  // next. Each turn makes the value tried one of the ends; kMostSteps ends what rounding keeps from settling.
  bool searching = exists && low < high, growing = false;
  for (int step = 0; any_lane(searching); ++step) {
    const double at = value;
    const int start = first_where(searching ? left * kChunkElements : last, last, lanes,
                                  [&](int j) { return Kind::value(memory.mass_at(j)) < at; });
    const int stop = first_where(searching ? behind_first : end, end, lanes,
                                 [&](int j) { return !(Kind::value(memory.mass_at(j)) > at); });
    const Mass pooled = pool(start, stop, searching);
    if (!searching) continue;
    result.start = start;
    result.end = stop;
    result.pooled = pooled;
    const double next = Kind::value(result.pooled);
    if (next > at)
      low = at;
    else
      high = at;
    value = next;
    if (!(low < next && next < high) || step % 8 == 7) value = low + (high - low) / 2;
    searching = next != at && low < value && value < high && step < kMostSteps;
    growing = next != at && !searching;
  }
  // Where rounding ended the search, neighbours may violate by as much: they are pooled too, until none does. Each turn
  // but the last takes in a block on one side at least.
  while (any_lane(growing)) {
    int start = result.start, stop = result.end;
    const double at = Kind::value(result.pooled);
    if (growing && start > left * kChunkElements && Kind::value(memory.mass_at(start - 1)) < at)
      start = memory.start_of_block(start - 1);
    if (growing && stop < end && Kind::value(memory.mass_at(stop)) > at) stop = memory.end_of_block(stop);
    growing = growing && (start < result.start || stop > result.end);
    const Mass pooled = pool(start, stop, growing);
    if (!growing) continue;
    result.start = start;
    result.end = stop;
    result.pooled = pooled;
  }
  // The rest of both pieces. Where nothing is pooled they are taken apart at the seam.
  const bool pools = result.start < result.end;
  const int first = (pools ? result.start : seam - 1) / kChunkElements;
  const int final = (result.end < end ? result.end : end - 1) / kChunkElements;
  const int from = first * kChunkElements, to = exists ? memory.end_of(final) : 0;
  const Mass before = sum_masses<Kind>(memory, exists ? from : result.start, result.start, lanes);
  const Mass below = sum_masses<Kind>(memory, result.start, exists ? memory.end_of(first) : 0, lanes);
  const Mass above = sum_masses<Kind>(memory, exists ? final * kChunkElements : result.end, result.end, lanes);
  const Mass after = sum_masses<Kind>(memory, result.end, to, lanes);
  if (!exists) return result;
  result.before = Kind::join(memory.before[first], before);
  result.after = Kind::join(after, memory.after[final]);
  result.left = Kind::join(result.before, Kind::join(below, memory.after[first]));
  result.right = Kind::join(Kind::join(memory.before[final], above), result.after);
  return result;
}

// Makes one piece of two, as far as one of their chunks is concerned; `middle` and `right` as above.
template <class Kind, class Memory>
__device__ __forceinline__ void close_seam(const Memory& memory, const Seam& seam, int middle, int right, int chunk) {
  const int begin = chunk * kChunkElements, end = memory.end_of(chunk);
  if (seam.start == seam.end) {
    if (chunk < middle)
      memory.after[chunk] = Kind::join(memory.after[chunk], seam.right);
    else
      memory.before[chunk] = Kind::join(seam.left, memory.before[chunk]);
    return;
  }
  const int piece_end = memory.end_of(right - 1);
  const int first = seam.start / kChunkElements;
  const int final = (seam.end < piece_end ? seam.end : piece_end - 1) / kChunkElements;
  if (chunk < first)
    memory.after[chunk] = Kind::join(memory.after[chunk], seam.right);
  else if (chunk < final)
    memory.after[chunk] = seam.after;
  if (chunk > final)
    memory.before[chunk] = Kind::join(seam.left, memory.before[chunk]);
  else if (chunk > first)
    memory.before[chunk] = Kind::join(seam.before, seam.pooled);
  if (chunk < first || begin >= seam.end) return;

  // The block's elements in this chunk.
  const int from = seam.start > begin ? seam.start - begin : 0, to = (seam.end < end ? seam.end : end) - begin;
  unsigned cleared = memory.words[chunk] & ((2u << (to - 1)) - (1u << from));
  if (seam.start >= begin) {
    cleared &= cleared - 1;  // where it begins
    memory.put(seam.start, seam.pooled);
  }
  memory.words[chunk] &= ~cleared;
  for (; cleared; cleared &= cleared - 1) memory.put(begin + lowest_bit(cleared), Kind::nothing());
  if (seam.start <= begin) memory.reaching[chunk] = seam.start;
  if (seam.end >= end) memory.ending[chunk] = seam.end;
}

}  // namespace cuda
}  // namespace hypersimplex
