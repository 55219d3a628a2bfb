// Work over threads. Every result is fixed by how the work is cut, which never depends on the number of threads.
#pragma once

#include <cstdint>

#include "errors.h"
#include "isa.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

constexpr int64_t kGrain = 16384;  // entries worth waking another thread for

// body(i) for every i < count, `batch` of them at a time to a thread. What a body throws first is thrown on.
template <class Body>
static void parallel_for(int64_t count, int threads, const Body& body, int64_t batch = 1) {
  if (threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  const int team = int(count < threads ? count : threads);
  cpu::FirstError error;  // none may leave the parallel region by itself
#pragma omp parallel for schedule(dynamic, batch) num_threads(team)
  for (int64_t i = 0; i < count; ++i) {
    try {
      body(i);
    } catch (...) {
      error.keep();
    }
  }
  error.raise();
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
