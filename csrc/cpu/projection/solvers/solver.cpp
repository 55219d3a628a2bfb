#include "cpu/projection/solvers/solver.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace hypersimplex {
namespace cpu {

namespace {

const char* const kNames[kSolvers] = {"short_vectors", "row_candidates", "single_row", "column_candidates",
                                      "long_vectors",  "long_columns",   "general",    "sorted"};
constexpr int kNone = -1;

int number_of(const std::string& name) {
  if (name.empty()) return kNone;
  std::string names;
  for (int i = 0; i < kSolvers; ++i) {
    if (name == kNames[i]) return i;
    names += (i > 0 ? ", " : "") + std::string(kNames[i]);
  }
  throw std::invalid_argument("HYPERSIMPLEX_CPU_SOLVER must be one of " + names + ", got " + name);
}

std::atomic<int>& forced() {
  static std::atomic<int> number{[] {
    const char* name = std::getenv("HYPERSIMPLEX_CPU_SOLVER");
    return number_of(name ? name : "");
  }()};
  return number;
}

std::atomic<SolverSet> noted{0};

}  // namespace

void force_solver(const std::string& name) { forced().store(number_of(name)); }

bool is_wanted(Solver solver, bool pays) {
  const int number = forced().load(std::memory_order_relaxed);
  return number == kNone ? pays : number == int(solver);
}

void note(SolverSet solvers) {
  if (solvers & ~noted.load(std::memory_order_relaxed)) noted.fetch_or(solvers, std::memory_order_relaxed);
}

std::vector<std::string> take_solvers() {
  const SolverSet solvers = noted.exchange(0);
  std::vector<std::string> names;
  for (int i = 0; i < kSolvers; ++i)
    if (solvers & set_of(Solver(i))) names.push_back(kNames[i]);
  return names;
}

void refuse_if_forced(Solver solver, const char* served) {
  if (forced().load(std::memory_order_relaxed) == int(solver))
    throw std::invalid_argument(std::string("HYPERSIMPLEX_CPU_SOLVER is ") + kNames[int(solver)] + ", which serves " +
                                served);
}

}  // namespace cpu
}  // namespace hypersimplex
