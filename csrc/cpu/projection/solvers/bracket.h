// A bracket of a threshold, and what it makes of the entries that it decides.
#pragma once

#include "cpu/simd/isa.h"
#include "newton.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// What an entry says of itself while the root lies between two thresholds: at or below `floor` it is zero, between the
// inner bounds it is active, at or above `ceiling` it is one; else it is undecided.
template <class T>
struct Bracket {
  Pair lo, hi;
  T floor, inner_floor, inner_ceiling, ceiling;

  Bracket() = default;
  Bracket(Pair lo, Pair hi, double tau)
      : lo(lo),
        hi(hi),
        floor(active_floor<T>(lo)),
        inner_floor(active_floor<T>(hi)),
        inner_ceiling(active_ceiling<T>(lo, tau)),
        ceiling(active_ceiling<T>(hi, tau)) {}
  bool open() const { return hi.d == HUGE_VAL; }  // no upper end: whatever is not zero is undecided
};

// Sums over the entries that a bracket decides.
struct Decided {
  double ones = 0, active = 0;  // how many are one, how many active
  double sum = 0;               // the active ones' sum of x - lo.p

  void add(const Decided& next) {
    ones += next.ones;
    active += next.active;
    sum += next.sum;
  }
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
