// A stand-in for CUDA's header of this name: with it the host compiler reads unmodified .cu files, and runs every CUDA
// thread as a fiber. tests/simt/README.md says what is checked on the way and what a kernel has to keep to.
#pragma once

#define __SIMT__ 1

#define __host__
#define __device__
#define __global__
#define __constant__
#define __grid_constant__
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
// No __shared__: blocks that are alive at the same time need memory of their own, from simt::shared_memory().

#include "simt/api.h"
#include "simt/arithmetic.h"
#include "simt/intrinsics.h"
#include "simt/thread.h"
#include "simt/types.h"
