// What blocks do that needs intrinsics: shared memory, barriers of a block, of a cluster and of blocks that meet in
// global memory, assertions.
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

// All threads of `blocks` blocks, which must be resident together; `arrivals` was zero at first and belongs to them,
// and `round` counts their meetings from 1. What a thread wrote before, every thread of these blocks sees after.
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
