// How many thread block clusters a GPU holds at once, which its number of multiprocessors does not tell: clusters lie
// within a part of the GPU, and parts differ. See clusters.py.

#include <cuda_runtime.h>

namespace {

__global__ void __launch_bounds__(1024) nothing() {}

}  // namespace

// Bytes of shared memory that a block of the current device may ask for; negative: a CUDA error.
extern "C" int largest_shared_memory() {
  int device = 0, bytes = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return error == cudaSuccess ? bytes : -int(error);
}

// Clusters of so many blocks, of threads and bytes of shared memory each, that run at once; negative: a CUDA error.
extern "C" int active_clusters(int blocks, int threads, int shared) {
  cudaError_t error = cudaFuncSetAttribute(nothing, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = blocks;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.attrs = &cluster;
  config.numAttrs = 1;
  int active = 0;
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(&active, nothing, &config);
  return error == cudaSuccess ? active : -int(error);
}
