// The terms a and b of isotonic.cpp, and vectors of which a is large beside b. A projection y = a - v, with v the mean
// of a - b or its like over a block, depends on b and on what a is within the block alone:
//     L2:  y_j = mean_B(b) + (a_j - mean_B(a))        KL:  y_j = (a_j - log sum_B exp(a)) + log sum_B exp(b)
// Where a spans many times what b spans, a - v would keep few digits or none. But no block reaches across a gap in a
// that is wider than all of b: much wider ones are narrowed before neighbours are pooled, a vector of nothing else has
// no neighbours to pool, and blocks of several elements have their results from differences of their own entries.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "cpu/order/segments.h"
#include "cpu/simd/exponential.h"
#include "newton.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// One term of a vector: scale * (entry - origin).
template <class In>
struct Term {
  const In* row;
  double scale;
  bool logarithm;
  int64_t n;
  const double* table;  // all of the term, then exponentials(), where that is there already; or null
  double origin = 0;

  double entry(int64_t j) const { return row ? double(load(row[j])) : double(n - j); }

  void evaluate(int64_t begin, int64_t count, double* out) const {
    if (table) {
      std::copy(table + begin, table + begin + count, out);
      return;
    }
    if (row)
      for (int64_t j = 0; j < count; ++j) out[j] = scale * (double(load(row[begin + j])) - origin);
    else if (scale == 0)
      std::fill(out, out + count, 0.0);
    else
      for (int32_t j = 0; j < int32_t(count); ++j) out[j] = scale * (double(n - begin) - origin - double(j));
    if (logarithm)
      for (int64_t j = 0; j < count; ++j) out[j] = std::log(out[j]);
  }
  double at(int64_t j) const {
    if (table) return table[j];
    const double element = scale == 0 ? 0 : scale * (entry(j) - origin);
    return logarithm ? std::log(element) : element;
  }
  // Of the elements, relative to `reference`, the first one.
  void exponentials(int64_t begin, int64_t count, double reference, double* out) const {
    if (table) {
      std::copy(table + n + begin, table + n + begin + count, out);
      return;
    }
    evaluate(begin, count, out);
    for (int64_t j = 0; j < count; ++j) out[j] = exponential(out[j] - reference);
  }
};

// The term in doubles and its exponentials, where it is the same for all vectors; from_first: relative to its first
// entry.
template <class In>
std::unique_ptr<double[]> common_table(const IsotonicTerm& term, const Shape& shape, bool from_first, int threads) {
  const Tensor<const In> tensor{static_cast<const In*>(term.data), term.strides};
  const bool common = !term.data || ((shape.outer == 1 || term.strides.outer == 0) &&
                                     (shape.inner == 1 || term.strides.inner == 0) && tensor.adjacent(shape));
  const int64_t n = shape.n1 * shape.n2;
  if (!common || n == 0) return nullptr;
  std::unique_ptr<double[]> table(new double[2 * size_t(n)]);
  Term<In> evaluated{tensor.data, term.scale, term.logarithm, n, nullptr};
  if (from_first) evaluated.origin = evaluated.entry(0);
  const double reference = evaluated.at(0);
  parallel_for(chunks_of(n), threads, [&](int64_t chunk) {
    for_each_segment(n, chunk, [&](int64_t begin, int64_t count) {
      evaluated.evaluate(begin, count, &table[begin]);
      evaluated.exponentials(begin, count, reference, &table[n + begin]);
    });
  });
  return table;
}

// How many times a may span what b spans for a - v to be as good as a result of type In can be.
template <class In>
constexpr double kHarmlessSpan = 4096;
template <>
constexpr double kHarmlessSpan<double> = 1;

// A bound above all gaps in a that a block can reach across. Of such a block, parts L and R on both sides of the gap
// have mean_L(a) - mean_R(a) <= mean_L(b) - mean_R(b), or the same of log sum exp.
template <class In>
double widest_gap(const Term<In>& b, bool entropic) {
  const double span = b.at(0) - b.at(b.n - 1);
  return entropic ? span + 2 * std::log(double(b.n)) : span;
}

// Whether digits are at stake: a spans so much more than the bound, and all of it is finite.
template <class In>
bool is_wide(const Term<In>& a, double bound) {
  const double first = a.entry(0), last = a.entry(a.n - 1);
  const bool finite = is_finite(first) && is_finite(last) && is_finite(bound);
  return finite && a.scale * (first - last) > kHarmlessSpan<In> * bound;
}

// How the gaps in a compare with the bound.
struct Gaps {
  bool all_reach;    // it: every element is a block by itself
  bool some_exceed;  // twice of it, and are to be narrowed to that
};
template <class In>
Gaps gaps_beside(const Term<In>& a, double bound) {
  int64_t below = 0, beyond = 0;
  auto compare = [&](double gap) {
    below |= -int64_t(!(gap >= bound));
    beyond |= -int64_t(gap > 2 * bound);
  };
  if (a.row)
    for (int64_t j = 1; j < a.n; ++j) compare(a.scale * (double(load(a.row[j - 1])) - double(load(a.row[j]))));
  else
    compare(a.scale);
  return {below == 0, beyond != 0};
}

// a with gaps of at most twice the bound, relative to its first entry, and the exponentials of that.
template <class In>
std::unique_ptr<double[]> narrowed(const Term<In>& a, double bound, bool entropic) {
  std::unique_ptr<double[]> table(new double[size_t(entropic ? 2 * a.n : a.n)]);
  double level = 0;  // of the element before
  for (int64_t j = 0; j < a.n; ++j) {
    if (j > 0) level -= std::min(a.scale * (a.entry(j - 1) - a.entry(j)), 2 * bound);
    table[j] = level;
  }
  if (entropic)
    for (int64_t j = 0; j < a.n; ++j) table[a.n + j] = exponential(table[j]);
  return table;
}

// The results of the block [start, end) from differences within it; `memory` takes a segment.
template <class Vector>
void write_by_differences(const Vector& vector, int64_t start, int64_t end, double* memory) {
  const bool entropic = vector.entropic, exponentiated = vector.result == IsotonicResult::kExpPrimal;
  auto a = vector.a, b = vector.b;
  a.table = b.table = nullptr;
  a.origin = a.entry(start);
  const double b_start = b.at(start);
  // Of b, exp(b - b_start) is summed up where it is no logarithm, else what the logarithm is taken of.
  const bool logarithm = b.logarithm;
  b.logarithm = false;
  if (!logarithm) b.origin = b.entry(start);
  const double unit = logarithm ? b.at(start) : 1;
  auto evaluate = [&](const auto& term, int64_t begin, int64_t count, bool exponentials) {
    term.evaluate(begin, count, memory);
    if (exponentials)
      for (int64_t j = 0; j < count; ++j) memory[j] = exponential(memory[j]);
  };

  double sum_a = 0, sum_b = 0;
  for (int64_t begin = start; begin < end; begin += kSegment) {
    const int64_t count = std::min(kSegment, end - begin);
    evaluate(b, begin, count, entropic && !logarithm);
    sum_b += sum_of(memory, count);
    evaluate(a, begin, count, entropic);
    sum_a += sum_of(memory, count);
  }
  const double size = double(end - start), of_block = std::log(sum_b / (unit * sum_a));
  const double factor = exponentiated && !logarithm ? std::exp(b_start) * sum_b : sum_b;
  for (int64_t begin = start; begin < end; begin += kSegment) {
    const int64_t count = std::min(kSegment, end - begin);
    evaluate(a, begin, count, entropic && exponentiated);
    for (int64_t j = 0; j < count; ++j) {
      double y = b_start + (sum_b / size + (memory[j] - sum_a / size));
      if (entropic) y = exponentiated ? factor * (memory[j] / sum_a) : b_start + (of_block + memory[j]);
      if (!entropic && exponentiated) y = std::exp(y);
      memory[j] = vector.scale * y;
    }
    deliver_doubles(memory, vector.order, begin, count, vector.out);
  }
}

// The first place from j on at which a block starts or, unless `start`, none does; n if there is none.
inline int64_t find_start(const Blocks* blocks, int64_t j, int64_t n, bool start) {
  // Before each turn no such place has been passed; all turns but the first begin at a word.
  for (; j < n; j = (j / kBlockBits + 1) * kBlockBits) {
    const Blocks word = blocks[j / kBlockBits], found = (start ? word : ~word) >> j % kBlockBits;
    if (found) return std::min(j + __builtin_ctz(found), n);
  }
  return n;
}

// Those of all blocks of several elements that start in a chunk.
template <class Vector>
void write_by_differences(const Vector& vector, int64_t chunk, double* memory) {
  const int64_t n = vector.n, last = std::min((chunk + 1) * kChunk, n);
  // No block of several elements that starts in the chunk, before place j, is left to be written.
  for (int64_t j = find_start(vector.blocks, chunk * kChunk, n, true); j < last;) {
    const int64_t second = find_start(vector.blocks, j + 1, n, false);
    if (second > last || second == n) break;
    j = find_start(vector.blocks, second, n, true);
    write_by_differences(vector, second - 1, j, memory);
  }
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
