// The projection's threshold from a sorted list of the entries: for the rare vector on which the search of newton.h
// does not settle.
#pragma once

#include <cstdint>

#include "newton.h"

namespace hypersimplex {
namespace cpu {

// x holds count finite entries and is sorted in place; 0 < k < count.
Pair exact_root(float* x, int64_t count, double k, double tau);
Pair exact_root(double* x, int64_t count, double k, double tau);

}  // namespace cpu
}  // namespace hypersimplex
