// Faults in what is read and written, and in what a launch asks for.
#include <cooperative_groups.h>

#include <cassert>

#include "launch.cuh"
#include "module.h"

namespace cg = cooperative_groups;

namespace {

__global__ void fill_kernel(int* out, int n) {
  if (int(threadIdx.x) < n) out[threadIdx.x] = int(threadIdx.x);
}

__global__ void fill_shared_kernel(int n) {
  if (int(threadIdx.x) < n) shared<int>()[threadIdx.x] = int(threadIdx.x);
}

// The neighbour may have ended before its memory is read.
__global__ void read_ended_block_kernel(int* out) {
  cg::cluster_group cluster = cg::this_cluster();
  int* own = shared<int>();
  *own = int(cluster.block_rank());
  cluster.sync();
  out[blockIdx.x] = *cluster.map_shared_rank(own, cluster.block_rank() ^ 1);
}

__global__ void map_outside_kernel(int* out) { *out = *cg::this_cluster().map_shared_rank(out, 0); }

__global__ void read_fresh_kernel(float* out) { *out = *shared<float>(); }

__global__ void assert_kernel(int limit) { assert(int(threadIdx.x) < limit); }
__global__ void trap_kernel() { __trap(); }
__global__ void empty_kernel() {}

}  // namespace

void store_outside(int size, int n) {
  Ints out(size);
  launch({1, 32}, fill_kernel, out.data(), n);
}
void store_outside_shared(int size, int n) { launch({2, 32, size * sizeof(int)}, fill_shared_kernel, n); }
Ints read_ended_block() {
  Ints out(8);
  launch({8, 1, sizeof(int), 2}, read_ended_block_kernel, out.data());
  return out;
}
void map_outside() {
  int out = 0;
  launch({1, 1, sizeof(int)}, map_outside_kernel, &out);
}
float read_fresh_shared() {
  float out = 0;
  launch({1, 1, sizeof(float)}, read_fresh_kernel, &out);
  return out;
}
void failed_assertion() { launch({1, 32}, assert_kernel, 31); }
void trap() { launch({1, 1}, trap_kernel); }
void empty(int blocks, int threads, int shared_bytes, int cluster, bool cooperative) {
  launch({unsigned(blocks), unsigned(threads), size_t(shared_bytes), unsigned(cluster), cooperative}, empty_kernel);
}
int clusters_at_once(int cluster, bool allowed) {
  if (allowed) cudaFuncSetAttribute(empty_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaLaunchAttribute size{};
  size.id = cudaLaunchAttributeClusterDimension;
  size.val.clusterDim = {unsigned(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = unsigned(cluster);
  config.blockDim = 1024;
  config.attrs = &size;
  config.numAttrs = 1;
  int clusters = -1;
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, empty_kernel, &config);
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  return clusters;
}
int set_shared_limit(int bytes) {
  const cudaError_t error = cudaFuncSetAttribute(empty_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  cudaFuncAttributes attributes{};
  cudaFuncGetAttributes(&attributes, empty_kernel);
  return attributes.maxDynamicSharedSizeBytes;
}
