// Which solvers there are, by name; which one is forced; which have been at work. Compiled once, not per instruction
// set.
#pragma once

#include <string>
#include <vector>

namespace hypersimplex {
namespace cpu {

// In the order of the table in plan.h.
enum class Solver : int {
  kShortVectors,
  kRowCandidates,
  kSingleRow,
  kColumnCandidates,
  kLongVectors,
  kLongColumns,
  kGeneral,
  kSorted,
};
constexpr int kSolvers = int(Solver::kSorted) + 1;

// Takes the place of HYPERSIMPLEX_CPU_SOLVER in the environment; "" leaves the choice to plan.h. A matter of the
// process, for tests and measurements.
void force_solver(const std::string& name);

// Whether this solver is to be tried: it is forced, or none is and it pays.
bool is_wanted(Solver solver, bool pays);

// Solvers, a bit each.
using SolverSet = unsigned;
constexpr SolverSet set_of(Solver solver) { return 1u << int(solver); }

// That these are at work, in any thread; and the names of those that have been since the last call.
void note(SolverSet solvers);
inline void note(Solver solver) { note(set_of(solver)); }
std::vector<std::string> take_solvers();

// Throws if the solver is forced: it does not serve this case, and `served` says which it does.
void refuse_if_forced(Solver solver, const char* served);

}  // namespace cpu
}  // namespace hypersimplex
