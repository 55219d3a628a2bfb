// What blocks do that needs intrinsics: shared memory, assertions, barriers of a block, of a cluster and of several
// blocks of a grid.
#pragma once

#include <cooperative_groups.h>

#include "warp.cuh"

// Class indices are checked on the device, as PyTorch does, whatever the build type.
#undef NDEBUG
#include <cassert>

namespace hypersimplex {
namespace cuda {

// All shared memory is dynamic, and reached through here.
template <class T>
__device__ __forceinline__ T* shared_memory(int bytes_before) {
#ifdef __SIMT__
  char* memory = static_cast<char*>(simt::shared_memory());
#else
  extern __shared__ __align__(16) char memory[];
#endif
  return reinterpret_cast<T*>(memory + bytes_before);
}

__device__ __forceinline__ void block_barrier() { __syncthreads(); }
__device__ __forceinline__ bool any_thread(bool predicate) { return __syncthreads_or(predicate) != 0; }

// Clusters exist from compute capability 9.0 on; elsewhere the host never chooses them.
#if defined(__SIMT__) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
__device__ __forceinline__ void cluster_barrier() { cooperative_groups::this_cluster().sync(); }
template <class T>
__device__ __forceinline__ T load_from_cluster(T* own, int rank) {
  return *cooperative_groups::this_cluster().map_shared_rank(own, rank);
}
#else
__device__ __forceinline__ void cluster_barrier() {}
template <class T>
__device__ __forceinline__ T load_from_cluster(T* own, int) {
  return *own;
}
#endif

// Adds to an integer, in shared or in global memory, while others do.
template <class Integer>
__device__ __forceinline__ void count_up(Integer* number, Integer by) {
  atomicAdd(number, by);
}

// A barrier of all threads of `blocks` blocks, which have to be resident together. `arrivals` is theirs alone and was
// zero at first, `round` counts their barriers from 1. What a thread wrote before it, all of them see after it.
// Arrivals are never reset: in round r they grow from (r - 1) * blocks to r * blocks, and nobody arrives in the next
// round before that.
__device__ __forceinline__ void grid_barrier(unsigned* arrivals, int blocks, unsigned round) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(arrivals, 1u);
    while (*static_cast<volatile unsigned*>(arrivals) < round * unsigned(blocks)) __nanosleep(32);
    __threadfence();
  }
  __syncthreads();
}

}  // namespace cuda
}  // namespace hypersimplex
