// What the host decides and the search needs, for bench/budget/workload.py: the plan that csrc/cuda/tuning.h makes for
// a problem, or how csrc/newton.h searches every vector of a sample. Reads numbers from standard input.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/tuning.h"
#include "newton.h"

using namespace hypersimplex;

namespace {

double number() {
  double v;
  if (std::scanf("%lf", &v) != 1) throw std::invalid_argument("a number is missing");
  return v;
}

void print_plan() {
  cuda::Limits limits{};
  limits.multiprocessors = int(number());
  limits.shared_per_block = int(number());
  limits.shared_per_multiprocessor = int(number());
  for (int& clusters : limits.clusters) clusters = int(number());
  cuda::Problem p{};
  p.n = p.n2 = int64_t(number());
  p.lines = 1;
  p.lanes = int64_t(number());
  p.adjacent = number() != 0;
  p.contiguous = !p.adjacent;
  p.packs = number() != 0;
  p.entry_bytes = int(number());
  p.compute_bytes = p.entry_bytes == 8 ? 8 : 4;
  p.state_bytes = int(number());
  const bool loss = number() != 0, backward = number() != 0;
  const cuda::Planner planner(p, limits);
  const cuda::Plan plan = backward ? planner.elementwise()
                          : loss   ? planner.of_wide_threads(planner.choose(false))
                                   : planner.with_lists(planner.choose(true), p.state_bytes);
  const char* names[] = {"short", "block", "cluster", "grid"};
  std::printf("%s %d %d %d %d %d %d %d %d %d %d\n", names[int(plan.regime)], plan.group, plan.columns, plan.threads,
              plan.blocks, plan.shared_bytes, plan.tiles, plan.teams, plan.resident, plan.staged, plan.list_bytes);
}

// A letter for each sweep after the moments are known, and one for the end: before a sweep the vector searches (s), or
// is nearly found, in which the sweep proves it right (r) or wrong (w); at last it is done (d).
std::string search_of(const std::vector<float>& x, double k, double tau) {
  double sum = 0, squares = 0;
  float low = HUGE_VALF, high = -HUGE_VALF;
  for (float v : x) {
    const double e = double(v) - double(x[0]);
    sum += e;
    squares += e * e;
    low = v < low ? v : low;
    high = v > high ? v : high;
  }
  const double n = double(x.size()), shift = sum / n;
  Search<float> search;
  search.begin<float>(k, tau, n, n, 0, 0, low, high, double(x[0]) + shift, squares / n - shift * shift);
  std::string letters;
  while (search.status == SearchStatus::kSearching) {
    const float floor = active_floor<float>(search.t), ceiling = active_ceiling<float>(search.t, tau);
    Sweep at{0, 0, 0};
    float zero = -HUGE_VALF, one = HUGE_VALF;
    for (float v : x) {
      at.g += v > floor;
      at.h += v >= ceiling;
      if (v > floor && v < ceiling) at.S += double(v) - search.t.p;
    }
    const bool same = at.g == search.last_g && at.h == search.last_h;
    letters += !search.nearly_found() ? 's' : same ? 'r' : 'w';
    search.step_to_end(at);
    if (search.flat == 0) continue;
    for (float v : x) (v > floor ? one : zero) = v > floor ? std::fmin(one, v) : std::fmax(zero, v);
    search.jump(zero, one);
  }
  return letters + 'd';
}

void print_searches() {
  const size_t n = size_t(number()), vectors = size_t(number());
  const double tau = number();
  std::vector<float> x(n);
  for (size_t i = 0; i < vectors; ++i) {
    const double k = number();
    for (float& v : x) v = float(number());
    std::printf("%s\n", search_of(x, k, tau).c_str());
  }
}

}  // namespace

int main(int count, char** words) {
  if (count == 2 && std::strcmp(words[1], "plan") == 0)
    print_plan();
  else
    print_searches();
}
