// The blocks that isotonic.cpp pools: what is kept of one, and how it takes in its neighbours.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/simd/exponential.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// What a chunk's blocks are made of: its elements, or units of adjacent elements. p and q are as the blocks define
// them.
struct Units {
  double *p, *q;
  double* sum;     // for MeanBlock, q * p
  int32_t* start;  // element at which a unit starts, and the end of the last; null: each unit is one element
  int64_t count;

  int64_t place(int64_t j) const { return start ? start[j] : j; }
  bool several(int64_t j) const { return start && start[j + 1] - start[j] > 1; }
};

// A block of adjacent elements [start, end). `value` is what must not increase from block to block. Of an element, p
// and q are the amount per weight and the weight: in least squares a - b and w. KL is the same in exponentials:
// exp(a - b) and exp(b), relative to the vector's first elements.
struct MeanBlock {
  double value, sum, weight;
  int64_t start, end;

  static double value_of(double p, double) { return p; }
  static MeanBlock single(double p, double q, int64_t j) { return {p, q * p, q, j, j + 1}; }
  static MeanBlock pooled(const MeanBlock& left, const MeanBlock& right) {
    const double sum = left.sum + right.sum, weight = left.weight + right.weight;
    return {sum / weight, sum, weight, left.start, right.end};
  }
  static MeanBlock unit(const Units& units, int64_t j) { return {units.p[j], units.sum[j], units.q[j], j, j + 1}; }
  // Takes in the units [end, stop) or [stop, start), from the block outwards, while they violate: sum and weight are
  // always those of [start, end). Most are found without a division; the rest only where rounding decides.
  void take_right(const Units& units, int64_t stop) {
    const int64_t near = std::min(end + 8, stop);
    for (; end < near && sum < weight * units.p[end]; ++end) take(units, end);
    while (end >= near && end + 4 <= stop && take_four(units)) end += 4;
    for (; end < stop && sum < weight * units.p[end]; ++end) take(units, end);
    value = sum / weight;
    for (; end < stop && value < units.p[end]; ++end, value = sum / weight) take(units, end);
  }
  void take_left(const Units& units, int64_t stop) {
    for (; start > stop && weight * units.p[start - 1] < sum; --start) take(units, start - 1);
    value = sum / weight;
    for (; start > stop && units.p[start - 1] < value; --start, value = sum / weight) take(units, start - 1);
  }

 private:
  void take(const Units& units, int64_t j) {
    sum += units.sum[j];
    weight += units.q[j];
  }
  // Takes in four units on the right if each violates after those before it: a long block waits for one sum, not four.
  bool take_four(const Units& units) {
    const double *p = units.p + end, *q = units.q + end, *s = units.sum + end;
    const double sum_2 = s[0] + s[1], sum_3 = sum_2 + s[2], weight_2 = q[0] + q[1], weight_3 = weight_2 + q[2];
    const bool violate = (sum < weight * p[0]) & (sum + s[0] < (weight + q[0]) * p[1]) &
                         (sum + sum_2 < (weight + weight_2) * p[2]) & (sum + sum_3 < (weight + weight_3) * p[3]);
    if (!violate) return false;
    sum += sum_3 + s[3];
    weight += weight_3 + q[3];
    return true;
  }
};

// KL where exponentials of a whole vector would leave the range of numbers. p and q are a and b. The sums are relative
// to the first element, the largest of its block: sum_a = sum_B exp(a - a_first).
struct LogBlock {
  double value, a, b, sum_a, sum_b;
  int64_t start, end;

  static double value_of(double p, double q) { return p - q; }
  static LogBlock single(double p, double q, int64_t j) { return {p - q, p, q, 1, 1, j, j + 1}; }
  static LogBlock pooled(const LogBlock& left, const LogBlock& right) {
    const double sum_a = left.sum_a + right.sum_a * exponential(right.a - left.a);
    const double sum_b = left.sum_b + right.sum_b * exponential(right.b - left.b);
    return {(left.a - left.b) + std::log(sum_a / sum_b), left.a, left.b, sum_a, sum_b, left.start, right.end};
  }
  static LogBlock unit(const Units& units, int64_t j) { return single(units.p[j], units.q[j], j); }
  // A run of rising elements is one block, whatever is around it: its value is computed only at its end.
  void take_right(const Units& units, int64_t stop) {
    const double *p = units.p, *q = units.q;
    while (end < stop && value < p[end] - q[end]) {
      do {
        sum_a += exponential(p[end] - a);
        sum_b += exponential(q[end] - b);
        ++end;
      } while (end < stop && p[end - 1] - q[end - 1] < p[end] - q[end]);
      value = (a - b) + std::log(sum_a / sum_b);
    }
  }
  void take_left(const Units& units, int64_t stop) {
    while (start > stop && units.p[start - 1] - units.q[start - 1] < value)
      *this = pooled(unit(units, start - 1), *this);
  }
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
