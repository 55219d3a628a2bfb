// Pool adjacent violators, within a chunk. Which of random elements violate is a row of coin tosses, which no processor
// predicts. So where blocks grow to both sides all the time, the elements that follow first go through rounds that
// compare without branches and leave few units to the loop that has to branch.
#pragma once

#include <algorithm>
#include <limits>

#include "cpu/order/pav_blocks.h"
#include "cpu/order/segments.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

constexpr int64_t kFirstTile = 64;  // elements that tell whether rounds are worth while
constexpr int64_t kTile = 256;      // elements that go through rounds together
constexpr int64_t kFewUnits = 32;   // for which no round is worth while
constexpr int64_t kLevels = 5;
constexpr int64_t kWidest = int64_t(1) << (kLevels - 1);

// windows[i][j] is the sum over the units [j, j + 2^i) of a tile.
class Windows {
 public:
  // `before` and `behind` stand for windows that begin before the first unit or end behind the last one.
  Windows(const double* units, int64_t count, double before, double behind) {
    for (auto& level : levels_) {
      std::fill(level, level + kWidest, before);
      std::fill(level + kWidest + count, level + 2 * kWidest + count, behind);
    }
    std::copy(units, units + count, levels_[0] + kWidest);
    // Before each turn the levels below i are complete, with `before` and `behind` around them.
    for (int64_t i = 1; i < kLevels; ++i) {
      const double* half = (*this)[i - 1];
      const int64_t shift = int64_t(1) << (i - 1);
      for (int64_t j = 0; j < count; ++j) levels_[i][kWidest + j] = half[j] + half[j + shift];
    }
  }
  const double* operator[](int64_t i) const { return levels_[i] + kWidest; }
  double sum(int64_t begin, int64_t end) const {
    // Before each turn `sum` has the units in front of begin. The rest is then shorter than kWidest, and each bit of
    // its length stands for a window.
    double sum = 0;
    for (; end - begin >= kWidest; begin += kWidest) sum += (*this)[kLevels - 1][begin];
    for (int64_t i = kLevels - 2; i >= 0; --i) {
      const int64_t width = (end - begin) & int64_t(1) << i;
      sum += only_if(width != 0, (*this)[i][begin]);
      begin += width;
    }
    return sum;
  }

 private:
  static double only_if(bool condition, double number) {
    uint64_t bits;
    memcpy(&bits, &number, sizeof bits);
    bits &= -uint64_t(condition);
    memcpy(&number, &bits, sizeof number);
    return number;
  }

  double levels_[kLevels][kTile + 2 * kWidest];
};

// Pools the units from place `from` on, at most a tile, where that is certain: no block starts at a unit if 1, 2, 4,
// ... units from there on have a larger mean than as many before it. Ties stay apart: sums of equal numbers are equal,
// and those of a monotone row are monotone, if `kElements`: each unit is an element, of weight 1.
template <bool kElements>
void pool_round(Units& units, int64_t from) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const int64_t count = units.count - from;
  double *p = units.p + from, *q = units.q + from, *sum = units.sum + from;
  int32_t* start = units.start + from;
  const Scratch<Windows> sums(sum, count, kInfinity, -kInfinity), weights(q, kElements ? 0 : count, 1, 1);
  const Windows &s = *sums, &w = *weights;

  int64_t starts[kTile];
  auto falls = [&](int64_t i, int64_t j) {
    const int64_t before = j - (int64_t(1) << i);
    return int64_t(!(kElements ? s[i][before] < s[i][j] : s[i][before] * w[i][j] < s[i][j] * w[i][before]));
  };
  static_assert(kLevels == 5, "as many as are compared");
  for (int64_t j = 0; j < count; ++j) starts[j] = falls(0, j) & falls(1, j) & falls(2, j) & falls(3, j) & falls(4, j);

  int32_t place[kTile + 1];
  // Without branches: place[found] is overwritten until a block starts there.
  int64_t found = 0;
  for (int64_t j = 0; j < count; ++j) {
    place[found] = int32_t(j);
    found += starts[j];
  }
  place[found] = int32_t(count);
  // Units are overwritten from the front: begin >= k, so that nothing is lost that is still read.
  for (int64_t k = 0; k < found; ++k) {
    const int64_t begin = place[k], end = place[k + 1];
    sum[k] = s.sum(begin, end);
    q[k] = kElements ? double(end - begin) : w.sum(begin, end);
    p[k] = sum[k] / q[k];
    start[k] = start[begin];
  }
  start[found] = start[count];
  units.count = from + found;
}

// The blocks of more than one element of a row of units, to which units can be appended.
template <class Block>
struct Pool {
  Block *blocks, *end;                // where they lie
  int64_t begun = 0, taken_left = 0;  // in the last extend(): blocks, and how often one took in what is left of it

  explicit Pool(Block* blocks) : blocks(blocks), end(blocks) {}

  // Goes on where the units were `from` in number.
  void extend(const Units& units, int64_t from) {
    const double *p = units.p, *q = units.q;
    Block* next = end;
    int64_t blocks_begun = 0, times_left = 0;
    auto keep = [&](int64_t j) {
      if (units.several(j)) *next++ = Block::unit(units, j);
    };
    // Merges the block with neighbours that violate, to the right and to the left in turns, until none does; returns
    // the place behind the first unit that is not in the block. Invariant of the loop: the blocks before `next`, and
    // single units between them, have descending values, and the block is the next one behind them; only its two
    // neighbours can violate. Each turn takes in at least one unit or block, so all turns together take linear time.
    auto grow = [&](Block block) __attribute__((always_inline)) {
      for (;; ++times_left) {
        block.take_right(units, units.count);
        const int64_t begin = block.start;
        if (next > blocks && next[-1].end == begin) {
          if (!(next[-1].value < block.value)) break;
          block = Block::pooled(*--next, block);
        } else {
          block.take_left(units, next > blocks ? next[-1].end : 0);
          if (block.start == begin) break;
        }
      }
      *next++ = block;
      return block.end + 1;
    };
    int64_t j = std::max(from, int64_t(1));
    if (next > blocks && next[-1].end == from) j = grow(*--next);
    for (;; ++blocks_begun) {
      // The blocks left of here hold the regression of the units before place j.
      for (; j < units.count && !(Block::value_of(p[j - 1], q[j - 1]) < Block::value_of(p[j], q[j])); ++j) keep(j - 1);
      if (j >= units.count) break;
      j = grow(Block::unit(units, j - 1));
    }
    if (j == units.count) keep(j - 1);
    end = next;
    begun = blocks_begun;
    taken_left = times_left;
  }
};

// What rounds make of a chunk's elements, all of weight 1, and the blocks of it.
class Rounds {
 public:
  // Overwrites p and q.
  Rounds(double* p, double* q, MeanBlock* blocks) : units_{p, q, p, nullptr, 0}, pool_(blocks) {}

  // No element before place `first` is above the one before it.
  MeanBlock* pool(int64_t first, int64_t count) {
    bool worthwhile = false;
    units_.count = first;
    // Before each turn the blocks, and the single units between them, are the regression of the elements before
    // `first`.
    for (int64_t length = kFirstTile; first < count; first += length, length = worthwhile ? kTile : 2 * length) {
      length = std::min(length, count - first);
      const int64_t from = units_.count;
      const bool round = worthwhile && length >= kFewUnits && !absorbed(first, length);
      append(first, length, round);
      if (round) {
        pool_round<true>(units_, from);
        if (units_.count - from >= kFewUnits) pool_round<false>(units_, from);
      }
      pool_.extend(units_, from);
      // Branches go either way where blocks are begun, and take in what is left of them, for every few elements.
      worthwhile = worthwhile || 6 * std::min(pool_.begun, pool_.taken_left) >= length;
    }
    for (MeanBlock* block = pool_.blocks; block < pool_.end; ++block) {
      block->start = units_.place(block->start);
      block->end = units_.place(block->end);
    }
    return pool_.end;
  }

 private:
  // Whether nearly all of these elements are above all blocks, and so go into one block, one after the other.
  bool absorbed(int64_t first, int64_t length) const {
    const MeanBlock* block = pool_.blocks;
    const double highest = block < pool_.end && block->start == 0 ? block->value : units_.p[0];
    int64_t above = 0;
    for (int64_t j = first; j < first + length; ++j) above += int64_t(units_.p[j] > highest);
    return 8 * above > 7 * length;
  }
  // As long as no elements have been pooled by rounds, they are where they were, and their own sums.
  void append(int64_t first, int64_t length, bool round) {
    const int64_t from = units_.count;
    units_.count += length;
    if (!units_.start) {
      if (!round) return;
      units_.sum = sum_;
      units_.start = start_;
      std::copy(units_.p, units_.p + from, sum_);
      for (int64_t j = 0; j < from; ++j) start_[j] = int32_t(j);
    }
    std::copy(units_.p + first, units_.p + first + length, sum_ + from);
    std::copy(sum_ + from, sum_ + units_.count, units_.p + from);
    std::fill(units_.q + from, units_.q + units_.count, 1.0);
    for (int64_t j = 0; j <= length; ++j) start_[from + j] = int32_t(first + j);
  }

  Units units_;
  Pool<MeanBlock> pool_;
  double sum_[kChunk];
  int32_t start_[kChunk + 1];
};

// A place before which no element is above the one before it; not always the last such place.
inline int64_t falling(const double* p, int64_t count) {
  // Before each turn no element in front of `begin` is above the one before it.
  for (int64_t begin = 1; begin < count; begin += kTile) {
    int64_t rises = 0;
    for (int64_t j = begin; j < std::min(begin + kTile, count); ++j) rises += int64_t(p[j - 1] < p[j]);
    if (rises) return begin;
  }
  return count;
}

// Of `count` elements with p and q, which are overwritten, the blocks of more than one; returns the end of these.
// `even`: q is 1 everywhere.
inline MeanBlock* pool_elements(double* p, double* q, int64_t count, bool even, MeanBlock* blocks) {
  const bool few = count < kFirstTile + kFewUnits;
  const int64_t first = few ? 0 : falling(p, count);
  if (even && !few) return Scratch<Rounds>(p, q, blocks)->pool(first, count);
  const ScratchArray<double> sum(even ? 0 : count);
  if (!even)
    for (int64_t j = 0; j < count; ++j) sum[j] = q[j] * p[j];
  Pool<MeanBlock> pool(blocks);
  pool.extend({p, q, even ? p : &sum[0], nullptr, count}, first);
  return pool.end;
}
inline LogBlock* pool_elements(double* p, double* q, int64_t count, bool, LogBlock* blocks) {
  Pool<LogBlock> pool(blocks);
  pool.extend({p, q, nullptr, nullptr, count}, 0);
  return pool.end;
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
