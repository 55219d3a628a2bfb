// The terms a and b of isotonic.cpp, and vectors of which a is large beside b. A projection y = a - v, with v the mean
// of a - b or its like over a block, depends on b and on what a is within the block alone:
//     L2:  y_j = mean_B(b) + (a_j - mean_B(a))        KL:  y_j = (a_j - log sum_B exp(a)) + log sum_B exp(b)
// Where a spans many times what b spans, a - v would keep few digits or none. But no block reaches across a gap in a
// that is wider than all of b, so that such gaps can be narrowed before neighbours are pooled, and each block has its
// results from differences of its own entries.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "exponential.h"
#include "segments.h"

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
    double element;
    evaluate(j, 1, &element);
    return element;
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

// Whether digits are at stake: a spans so much more than b, and all of it is finite.
template <class In>
bool is_wide(const Term<In>& a, const Term<In>& b, bool entropic) {
  const double first = a.entry(0), last = a.entry(a.n - 1), bound = widest_gap(b, entropic);
  const bool finite = first - first == 0 && last - last == 0 && bound - bound == 0;
  return finite && a.scale * (first - last) > kHarmlessSpan<In> * bound;
}

// a with gaps of at most twice the bound, relative to its first entry, and the exponentials of that.
template <class In>
std::unique_ptr<double[]> narrowed(const Term<In>& a, const Term<In>& b, bool entropic) {
  const double widest = 2 * widest_gap(b, entropic);
  std::unique_ptr<double[]> table(new double[size_t(entropic ? 2 * a.n : a.n)]);
  double level = 0;
  for (int64_t j = 0; j < a.n; ++j) {
    if (j > 0) level -= std::min(a.scale * (a.entry(j - 1) - a.entry(j)), widest);
    table[j] = level;
    if (entropic) table[a.n + j] = exponential(level);
  }
  return table;
}

// The results of a vector, block by block, from differences within the block.
template <class Vector>
void write_by_differences(const Vector& vector) {
  const auto &a = vector.a, &b = vector.b;
  auto starts = [&](int64_t j) { return vector.blocks[j / kBlockBits] >> (j % kBlockBits) & 1; };
  const bool exponentiated = vector.result == IsotonicResult::kExpPrimal;
  const ScratchArray<double> results(kSegment);
  for (int64_t start = 0, end = 0; start < vector.n && starts(start); start = end) {
    auto beyond = [&](int64_t j) { return a.scale * (a.entry(j) - a.entry(start)); };
    auto weight = [&](int64_t j) { return b.logarithm ? b.scale * b.entry(j) : std::exp(b.at(j)); };
    const double b_start = b.at(start);
    double sum_a = 0, sum_b = 0;
    for (end = start; end < vector.n && (end == start || !starts(end)); ++end) {
      sum_a += vector.entropic ? std::exp(beyond(end)) : beyond(end);
      if (!vector.entropic)
        sum_b += b.at(end) - b_start;
      else
        sum_b += exponentiated ? weight(end) : std::exp(b.at(end) - b_start);
    }
    const double size = double(end - start);
    auto result = [&](int64_t j) {
      if (!vector.entropic) {
        const double y = b_start + (sum_b / size + (beyond(j) - sum_a / size));
        return exponentiated ? std::exp(y) : y;
      }
      return exponentiated ? sum_b * (std::exp(beyond(j)) / sum_a) : b_start + (std::log(sum_b / sum_a) + beyond(j));
    };
    for (int64_t begin = start; begin < end; begin += kSegment) {
      const int64_t count = std::min(kSegment, end - begin);
      for (int64_t j = 0; j < count; ++j) results[j] = vector.scale * result(begin + j);
      deliver_doubles(results, vector.order, begin, count, vector.out);
    }
  }
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
