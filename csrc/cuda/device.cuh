// What the current device offers a kernel. It is asked once for each kernel, as some answers take longer than a launch.
#pragma once

#include <map>
#include <mutex>
#include <utility>

#include "tuning.h"
#include "warp.cuh"

namespace hypersimplex {
namespace cuda {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA error in ") + what + ": " + cudaGetErrorString(error));
}

template <class... Parameters>
const void* address_of(void (*kernel)(Parameters...)) {
  return reinterpret_cast<const void*>(kernel);
}

// ask(device, kernel) for the current device, remembered from the first time.
template <auto ask>
const auto& once(const void* kernel) {
  static std::mutex lock;
  static std::map<std::pair<int, const void*>, decltype(ask(0, kernel))> answers;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  std::lock_guard<std::mutex> guard(lock);
  auto found = answers.find({device, kernel});
  if (found == answers.end()) found = answers.emplace(std::make_pair(device, kernel), ask(device, kernel)).first;
  return found->second;
}

inline int ask_attribute(int device, cudaDeviceAttr which) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

// Lets a kernel take all the dynamic shared memory that a block can have, and tells how much that is. With a limit that
// fits one launch, a thread could lower it between another's setting it higher and launching.
inline int allow_shared_memory(int device, const void* kernel) {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  const int bytes = ask_attribute(device, cudaDevAttrMaxSharedMemoryPerBlockOptin) - int(attributes.sharedSizeBytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "cudaFuncSetAttribute");
  return bytes;
}

// How many clusters of 2, 4, ... blocks of the kernel the device runs at once if the blocks are as large as they can
// be. Multiprocessors come in groups that no cluster goes beyond, and how many a group has differs between devices of
// one kind: what an architecture promises does not tell.
inline void ask_clusters(int device, const void* kernel, Limits& limits) {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  constexpr int kFirstWithClusters = 90;  // older code, translated for this device, would not wait for its cluster
  if (!ask_attribute(device, cudaDevAttrClusterLaunch) || attributes.ptxVersion < kFirstWithClusters) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cudaFuncSetAttribute");
  for (int i = 0; i < tuning::kClusterSizes; ++i) {
    cudaLaunchAttribute size{};
    size.id = cudaLaunchAttributeClusterDimension;
    size.val.clusterDim = {2u << i, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(2u << i);
    config.blockDim = dim3(unsigned(attributes.maxThreadsPerBlock));
    config.dynamicSmemBytes = size_t(limits.shared_per_block);
    config.attrs = &size;
    config.numAttrs = 1;
    if (cudaOccupancyMaxActiveClusters(&limits.clusters[i], kernel, &config) == cudaSuccess) continue;
    limits.clusters[i] = 0;  // a size that the device does not know
    cudaGetLastError();
  }
}

inline Limits ask_limits(int device, const void* kernel) {
  Limits limits{};
  limits.multiprocessors = ask_attribute(device, cudaDevAttrMultiProcessorCount);
  limits.shared_per_multiprocessor = ask_attribute(device, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  limits.shared_per_block =
      kernel ? once<allow_shared_memory>(kernel) : ask_attribute(device, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (kernel) ask_clusters(device, kernel, limits);
  return limits;
}

// For plans: of a kernel that may run in clusters, or of those that do not.
inline const Limits& device_limits(const void* cluster_kernel = nullptr) { return once<ask_limits>(cluster_kernel); }

}  // namespace cuda
}  // namespace hypersimplex
