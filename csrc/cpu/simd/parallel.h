// Work over threads. Every result is fixed by how sums are cut into blocks, which never depends on the number of
// threads.
#pragma once

#include <cstdint>

#include "cpu/simd/errors.h"
#include "cpu/simd/float_environment.h"
#include "cpu/simd/isa.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

constexpr int64_t kGrain = 16384;  // entries worth waking another thread for

// body(i) for every i < count, `batch` of them at a time to a thread; the i-th to thread i where there are no more of
// them than threads. What a body throws first is thrown on.
template <class Body>
static void parallel_for(int64_t count, int threads, const Body& body, int64_t batch = 1) {
  if (threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  cpu::FirstError error;  // none may leave the parallel region by itself
  auto guarded = [&](int64_t i) {
    try {
      body(i);
    } catch (...) {
      error.keep();
    }
  };
  if (count <= threads) {
#pragma omp parallel num_threads(int(count))
    {
      const cpu::FloatEnvironment environment;
#pragma omp for schedule(static, 1) nowait
      for (int64_t i = 0; i < count; ++i) guarded(i);
    }
  } else {
#pragma omp parallel num_threads(threads)
    {
      const cpu::FloatEnvironment environment;
#pragma omp for schedule(dynamic, batch) nowait
      for (int64_t i = 0; i < count; ++i) guarded(i);
    }
  }
  error.raise();
}

enum class Walk { kForwards, kBackwards };

// body(i, part) for every i < count, a part of its own to each thread: who walks back over an array that he has just
// walked over finds its end in his cache.
template <class Body>
static void walk_parts(int64_t count, int threads, Walk walk, const Body& body) {
  const int64_t parts = count < threads ? count : threads;
  parallel_for(parts, threads, [&](int64_t part) {
    const int64_t begin = count * part / parts, end = count * (part + 1) / parts;
    for (int64_t i = begin; i < end; ++i) body(walk == Walk::kForwards ? i : begin + (end - 1 - i), part);
  });
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
