// Finds the thresholds of a panel's vectors, by the solvers that plan.h wants, one after the other: each leaves to the
// next what it declines. What has solvers of its own, rows in batches and the columns of a loss, comes here for the
// rest.
#pragma once

#include "cpu/projection/solvers/general.h"
#include "cpu/projection/solvers/long_columns.h"
#include "cpu/projection/solvers/long_vectors.h"
#include "cpu/projection/solvers/short_vectors.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// `entries(step, steps, buffer)` gives a block of x as a View; entries that take no part are -inf in it.
template <class T, class Entries>
class PanelSolver {  // large: to be had as Scratch
 public:
  PanelSolver(const Panel& panel, int threads, const Entries& entries)
      : panel_(panel), threads_(threads), general_(panel, threads, entries) {}

  // Leaves p and d of every live column there, from the panel's first vector on; the solvers that were at work. Where
  // tops() are found, visit(step, steps) has seen every block, in a sweep that had to be.
  template <class Visit>
  cpu::SolverSet solve(const PerVector& k, const PerVector& tau, double* p, double* d, const Visit& visit) {
    cpu::SolverSet tried = 0;
    const bool* solved = nullptr;
    auto read = [&](int64_t step, int64_t steps, T* buffer) { return general_.entries(step, steps, buffer); };
    if (wants_short_vectors(panel_.plan)) {
      tried |= set_of(cpu::Solver::kShortVectors);
      general_.keep_in_place();
      const View<const T>& x = general_.kept();
      if (x.at ? short_.solve(panel_, x.at, x.stride, k, tau, p, d, solved_)
               : short_.solve_copied(panel_, read, k, tau, p, d, solved_))
        return tried;
      solved = solved_;
    } else if (can_use_long_vectors(panel_.plan)) {
      const int64_t v = panel_.vector(0);
      const bool done = long_.solve(panel_, threads_, read, at(k, v), at(tau, v), visit, p, d);
      if (long_.tried()) tried |= set_of(cpu::Solver::kLongVectors);
      if (done) return tried;
    } else if (wants_long_columns(panel_.plan)) {
      tried |= set_of(cpu::Solver::kLongColumns);
      if (Scratch<LongColumns<T>>()->solve(panel_, threads_, read, k, tau, p, d, solved_)) return tried;
      solved = solved_;
    }
    general_.keep();
    general_.solve(k, tau, p, d, solved);
    return tried | set_of(cpu::Solver::kGeneral);
  }
  cpu::SolverSet solve(const PerVector& k, const PerVector& tau, double* p, double* d) {
    return solve(k, tau, p, d, [](int64_t, int64_t) {});
  }

  General<T, Entries>& general() { return general_; }
  // Block of x.
  View<const T> entries(int64_t step, int64_t steps, T* buffer) { return general_.entries(step, steps, buffer); }
  // Lanes for the projection: the search is over.
  Lanes<T>& lanes() { return general_.lanes(); }
  // All entries of a long vector that are not zero and some more, where they are few; or null.
  const Candidates<T>* tops() const { return long_.tops(); }

 private:
  const Panel& panel_;
  const int threads_;
  ShortVectors<T> short_;
  LongVector<T> long_;
  bool solved_[kMaxLanes];
  General<T, Entries> general_;
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
