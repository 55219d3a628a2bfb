// Projections of vectors that are too long even for the cache, where each pass over all entries counts.
#pragma once

#include "launch.cuh"

namespace hypersimplex {
namespace cuda {

// Of a plan with lists; args as laid out for it.
void long_threshold(const ThresholdArgs& args, const Plan& plan, void* workspace, void* stream);
// What its kernel keeps of a vector in shared memory.
int long_state_bytes(DType dtype);

}  // namespace cuda
}  // namespace hypersimplex
