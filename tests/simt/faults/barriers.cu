// Faults in how threads meet.
#include <cooperative_groups.h>

#include "launch.cuh"
#include "module.h"

namespace cg = cooperative_groups;

namespace {

// Reverses the block's numbers; the barrier between store and load is missing.
__global__ void missing_barrier_kernel(int* x) {
  int* buffer = shared<int>();
  buffer[threadIdx.x] = x[threadIdx.x];
  x[threadIdx.x] = buffer[blockDim.x - 1 - threadIdx.x];
}

// The same within a warp.
__global__ void missing_syncwarp_kernel(int* x) {
  int* buffer = shared<int>();
  __syncthreads();
  buffer[threadIdx.x] = x[threadIdx.x];
  x[threadIdx.x] = buffer[threadIdx.x ^ 1];
}

// Shifts twice; nothing keeps the second store from overtaking the first load.
__global__ void missing_second_barrier_kernel(int* x) {
  int* buffer = shared<int>();
  for (int round = 0; round < 2; ++round) {
    buffer[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = buffer[(threadIdx.x + 1) % blockDim.x];
  }
}

// All lanes of one warp meet, but the store was another warp's.
__global__ void wrong_scope_kernel(int* x) {
  int* buffer = shared<int>();
  buffer[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  x[threadIdx.x] = buffer[(threadIdx.x + warpSize) % blockDim.x];
}

// A shuffle hands over its value, but does not order what the lanes store and load.
__global__ void shuffle_for_barrier_kernel(int* x) {
  int* buffer = shared<int>();
  buffer[threadIdx.x] = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 2);
  x[threadIdx.x] = buffer[threadIdx.x ^ 1] + __shfl_xor_sync(0xffffffff, x[threadIdx.x], 2);
}

__global__ void barrier_in_branch_kernel(unsigned threads) {
  if (threadIdx.x < threads) __syncthreads();
}

__global__ void barrier_in_both_branches_kernel(unsigned threads) {
  if (threadIdx.x < threads) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void warp_waits_for_barrier_kernel() {
  if (threadIdx.x == 0)
    __syncwarp();
  else
    __syncthreads();
}

__global__ void cluster_barrier_in_branch_kernel() {
  if (cg::this_cluster().block_rank() == 0) cg::this_cluster().sync();
}

__global__ void grid_barrier_kernel() { cg::this_grid().sync(); }

__global__ void lanes_returned_kernel(int* x) {
  if (threadIdx.x >= 16) return;
  x[threadIdx.x] = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);
}

__global__ void lanes_elsewhere_kernel(int* x) {
  if (threadIdx.x < 16)
    x[threadIdx.x] = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);
  else
    x[threadIdx.x] = __ballot_sync(0xffffffff, 1);
}

__global__ void source_outside_mask_kernel(int* x) {
  if (threadIdx.x < 16) x[threadIdx.x] = __shfl_sync(0xffff, x[threadIdx.x], threadIdx.x + 1);
}

__global__ void caller_outside_mask_kernel() { __syncwarp(0xffff); }

__global__ void full_warp_kernel(int* x) { x[threadIdx.x] = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1); }

__global__ void poll_kernel(const int* flag) {
  while (*static_cast<const volatile int*>(flag) == 0) __nanosleep(20);
}

Ints run(Shape shape, void (*kernel)(int*), Ints x) {
  launch(shape, kernel, x.data());
  return x;
}

}  // namespace

Ints missing_barrier(const Ints& x) {
  return run({1, unsigned(x.size()), x.size() * sizeof(int)}, missing_barrier_kernel, x);
}
Ints missing_syncwarp(const Ints& x) {
  return run({1, unsigned(x.size()), x.size() * sizeof(int)}, missing_syncwarp_kernel, x);
}
Ints missing_second_barrier(const Ints& x) {
  return run({1, unsigned(x.size()), x.size() * sizeof(int)}, missing_second_barrier_kernel, x);
}
Ints wrong_scope(const Ints& x) { return run({1, unsigned(x.size()), x.size() * sizeof(int)}, wrong_scope_kernel, x); }
Ints shuffle_for_barrier(const Ints& x) {
  return run({1, unsigned(x.size()), x.size() * sizeof(int)}, shuffle_for_barrier_kernel, x);
}
void barrier_in_branch() { launch({3, 64}, barrier_in_branch_kernel, 16u); }
void barrier_in_both_branches() { launch({1, 64}, barrier_in_both_branches_kernel, 32u); }
void warp_waits_for_barrier() { launch({1, 32}, warp_waits_for_barrier_kernel); }
void cluster_barrier_in_branch() { launch({4, 32, 0, 2}, cluster_barrier_in_branch_kernel); }
void grid_barrier_without_cooperation() { launch({2, 32}, grid_barrier_kernel); }
void lanes_returned() { run({1, 32}, lanes_returned_kernel, Ints(32)); }
void lanes_elsewhere() { run({1, 32}, lanes_elsewhere_kernel, Ints(32)); }
void source_outside_mask() { run({1, 32}, source_outside_mask_kernel, Ints(32)); }
void caller_outside_mask() { launch({1, 32}, caller_outside_mask_kernel); }
void partial_warp() { run({1, 48}, full_warp_kernel, Ints(48)); }
void poll_for_ever() {
  Ints flag(1);
  launch({1, 32}, poll_kernel, flag.data());
}
