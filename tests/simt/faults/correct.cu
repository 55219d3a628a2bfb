// Kernels without a fault, one for each way in which threads meet: they must give the right result under every seed.
#include <cooperative_groups.h>

#include "launch.cuh"
#include "module.h"

namespace cg = cooperative_groups;

namespace {

__device__ int warp_sum(int value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffff, value, offset);
  return value;
}

// Sum of n numbers per block; blockDim.x a multiple of 32.
__global__ void sum_kernel(const int* x, int n, int* out) {
  int* partial = shared<int>();
  int sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[blockIdx.x * n + i];
  sum = warp_sum(sum);
  if (threadIdx.x % warpSize == 0) partial[threadIdx.x / warpSize] = sum;
  __syncthreads();
  if (threadIdx.x < warpSize) {
    sum = warp_sum(threadIdx.x < blockDim.x / warpSize ? partial[threadIdx.x] : 0);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
  }
}

// Inclusive scan of blockDim.x numbers, two buffers so that one barrier per step is enough.
__global__ void scan_kernel(const int* x, int* out) {
  int* buffer = shared<int>();
  unsigned size = blockDim.x, from = 0;
  buffer[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  for (unsigned step = 1; step < size; step *= 2, from ^= 1) {
    int* source = buffer + from * size;
    int value = source[threadIdx.x] + (threadIdx.x >= step ? source[threadIdx.x - step] : 0);
    buffer[(from ^ 1) * size + threadIdx.x] = value;
    __syncthreads();
  }
  out[threadIdx.x] = buffer[from * size + threadIdx.x];
}

// Groups of `width` lanes, each with a mask of its own, sum side by side a different number of times.
__global__ void group_kernel(const int* x, int width, int* out) {
  int lane = threadIdx.x % warpSize, group = lane / width;
  unsigned mask = (width == 32 ? 0xffffffffu : (1u << width) - 1) << (group * width);
  int value = x[threadIdx.x];
  for (int round = 0; round <= group; ++round)
    for (int flip = width / 2; flip > 0; flip /= 2) value += __shfl_xor_sync(mask, value, flip, width);
  __syncwarp(mask);
  out[threadIdx.x] = value + (__any_sync(mask, lane % width == 0) ? 0 : 1) + __popc(__ballot_sync(mask, 1)) - width;
}

// Every block of a cluster adds up what all blocks hold.
__global__ void cluster_kernel(const int* x, int* out) {
  cg::cluster_group cluster = cg::this_cluster();
  int* own = shared<int>();
  own[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
  cluster.sync();
  int sum = 0;
  for (unsigned rank = 0; rank < cluster.num_blocks(); ++rank) sum += cluster.map_shared_rank(own, rank)[threadIdx.x];
  cluster.barrier_arrive();
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
  cluster.barrier_wait();
}

__device__ void swap(int*& a, int*& b) {
  int* c = a;
  a = b;
  b = c;
}

// Each round a thread takes the value of the next thread in the grid.
__global__ void rotate_kernel(int* from, int* to, int rounds) {
  unsigned n = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  for (int round = 0; round < rounds; ++round, swap(from, to)) {
    to[i] = from[(i + 1) % n];
    cg::this_grid().sync();
  }
}

// The same, waiting for the other blocks on a counter in memory.
__global__ void rotate_polling_kernel(int* from, int* to, int rounds, unsigned* arrived) {
  unsigned n = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  for (int round = 0; round < rounds; ++round, swap(from, to)) {
    to[i] = from[(i + 1) % n];
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(arrived, 1);
      while (*static_cast<volatile unsigned*>(arrived) < (round + 1) * gridDim.x) __nanosleep(20);
      __threadfence();
    }
    __syncthreads();
  }
}

// The block that finishes last adds up what all have left.
__global__ void last_block_kernel(const int* x, int* partial, unsigned* tickets, int* out) {
  bool* last = shared<bool>();
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = x[blockIdx.x];
    __threadfence();
    *last = atomicAdd(tickets, 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!*last) return;
  int sum = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += blockDim.x) sum += partial[i];
  atomicAdd(out, sum);
}

__global__ void histogram_kernel(const int* x, int n, int bins, int* out) {
  int* count = shared<int>();
  for (int b = threadIdx.x; b < bins; b += blockDim.x) count[b] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) atomicAdd(&count[x[i]], 1);
  __syncthreads();
  for (int b = threadIdx.x; b < bins; b += blockDim.x) out[b] = count[b];
}

}  // namespace

Ints block_sum(const Ints& x, int blocks, int threads) {
  Ints out(blocks);
  launch({unsigned(blocks), unsigned(threads), 32 * sizeof(int)}, sum_kernel, x.data(), int(x.size()) / blocks,
         out.data());
  return out;
}

Ints block_scan(const Ints& x) {
  Ints out(x.size());
  launch({1, unsigned(x.size()), 2 * x.size() * sizeof(int)}, scan_kernel, x.data(), out.data());
  return out;
}

Ints group_sum(const Ints& x, int width) {
  Ints out(x.size());
  launch({1, unsigned(x.size())}, group_kernel, x.data(), width, out.data());
  return out;
}

Ints cluster_sum(const Ints& x, int cluster, int threads) {
  Ints out(x.size());
  launch({unsigned(x.size()) / threads, unsigned(threads), threads * sizeof(int), unsigned(cluster)}, cluster_kernel,
         x.data(), out.data());
  return out;
}

Ints grid_rotate(Ints x, int threads, int rounds, bool polling) {
  Ints other(x.size());
  unsigned arrived = 0;
  Shape shape{unsigned(x.size()) / threads, unsigned(threads), 0, 1, true};
  if (polling)
    launch(shape, rotate_polling_kernel, x.data(), other.data(), rounds, &arrived);
  else
    launch(shape, rotate_kernel, x.data(), other.data(), rounds);
  return rounds % 2 ? other : x;
}

int last_block_sum(const Ints& x, int threads) {
  Ints partial(x.size());
  unsigned tickets = 0;
  int out = 0;
  launch({unsigned(x.size()), unsigned(threads), 1}, last_block_kernel, x.data(), partial.data(), &tickets, &out);
  return out;
}

Ints histogram(const Ints& x, int bins, int threads) {
  Ints out(bins);
  launch({1, unsigned(threads), bins * sizeof(int)}, histogram_kernel, x.data(), int(x.size()), bins, out.data());
  return out;
}
