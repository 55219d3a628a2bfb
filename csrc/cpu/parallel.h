// Work over threads. Every result is fixed by how the work is cut, which never depends on the number of threads.
#pragma once

#include <cstdint>

#include "isa.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

constexpr int64_t kGrain = 16384;  // entries worth waking another thread for

template <class Body>
static void parallel_for(int64_t count, int threads, const Body& body) {
  if (threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  int team = int(count < threads ? count : threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
  for (int64_t i = 0; i < count; ++i) body(i);
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
