// The device that the runtime's host interface shows, and the checks that a launch has to pass as on a real one.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>

#include "scheduler.h"

namespace {

// Behind the attributes that CUDA has: how many clusters of 2, 4, 8 and 16 blocks run at once. Which multiprocessors
// can form one is nowhere to be read on a real device either.
constexpr int kClustersAtOnce = 1000;

// A device of compute capability 9.0, small enough that grids which fill it are quick to run, but with the clusters of
// an H100.
std::map<int, int> attributes = {
    {cudaDevAttrMaxThreadsPerBlock, 1024},
    {cudaDevAttrMaxGridDimX, 2147483647},
    {cudaDevAttrMaxSharedMemoryPerBlock, 48 << 10},
    {cudaDevAttrWarpSize, simt::kWarpSize},
    {cudaDevAttrMaxRegistersPerBlock, 65536},
    {cudaDevAttrMultiProcessorCount, 4},
    {cudaDevAttrL2CacheSize, 50 << 20},
    {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
    {cudaDevAttrComputeCapabilityMajor, 9},
    {cudaDevAttrComputeCapabilityMinor, 0},
    {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 228 << 10},
    {cudaDevAttrCooperativeLaunch, 1},
    {cudaDevAttrMaxSharedMemoryPerBlockOptin, 227 << 10},
    {cudaDevAttrMaxBlocksPerMultiprocessor, 32},
    {cudaDevAttrReservedSharedMemoryPerBlock, 1 << 10},
    {cudaDevAttrClusterLaunch, 1},
    {kClustersAtOnce + 2, 66},
    {kClustersAtOnce + 4, 32},
    {kClustersAtOnce + 8, 15},
    {kClustersAtOnce + 16, 7},
};
// Its number. One that has been changed is another one, of which nothing is known yet.
int device_number = 0;
constexpr unsigned kPortableClusterSize = 8, kClusterSize = 16;

struct Function {
  int shared_bytes = attributes[cudaDevAttrMaxSharedMemoryPerBlock];
  bool large_clusters = false;
};
std::map<const void*, Function> functions;
std::mutex lock;
thread_local cudaError_t last_error = cudaSuccess;
std::vector<const void*> launches;
std::vector<unsigned> clusters;  // blocks per cluster of these launches
std::vector<cudaStream_t> streams;

cudaError_t result(cudaError_t error) { return error == cudaSuccess ? error : last_error = error; }

unsigned volume(dim3 size) { return size.x * size.y * size.z; }

int clusters_at_once(unsigned blocks) {
  auto found = attributes.lower_bound(kClustersAtOnce + int(blocks));
  return attributes[cudaDevAttrClusterLaunch] && found != attributes.end() ? found->second : 0;
}

cudaError_t check(const simt::Launch& launch, const Function& function) {
  dim3 grid = launch.grid, cluster = launch.cluster;
  unsigned threads = volume(launch.block), blocks = volume(cluster);
  if (volume(grid) == 0 || grid.y > 65535 || grid.z > 65535 || grid.x > unsigned(attributes[cudaDevAttrMaxGridDimX]))
    return cudaErrorInvalidConfiguration;
  if (threads == 0 || threads > unsigned(attributes[cudaDevAttrMaxThreadsPerBlock]) || launch.block.z > 64)
    return cudaErrorInvalidConfiguration;
  if (launch.shared_bytes > size_t(function.shared_bytes)) return cudaErrorInvalidValue;
  if (blocks == 0 || blocks > (function.large_clusters ? kClusterSize : kPortableClusterSize) || grid.x % cluster.x ||
      grid.y % cluster.y || grid.z % cluster.z)
    return cudaErrorInvalidConfiguration;
  if (blocks > 1 && clusters_at_once(blocks) == 0) return cudaErrorInvalidConfiguration;
  int resident = simt::blocks_per_multiprocessor(int(threads), launch.shared_bytes);
  if (launch.cooperative && volume(grid) > unsigned(resident * attributes[cudaDevAttrMultiProcessorCount]))
    return cudaErrorCooperativeLaunchTooLarge;
  return cudaSuccess;
}

}  // namespace

namespace simt {

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, void (*body)(const void*),
                   const void* arguments) {
  Launch launch{config.gridDim, config.blockDim, dim3(), config.dynamicSmemBytes, false, kernel, body, arguments};
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeCooperative) launch.cooperative = attribute.val.cooperative != 0;
    if (attribute.id == cudaLaunchAttributeClusterDimension)
      launch.cluster = {attribute.val.clusterDim.x, attribute.val.clusterDim.y, attribute.val.clusterDim.z};
  }
  {
    std::lock_guard<std::mutex> guard(lock);
    cudaError_t error = check(launch, functions[kernel]);
    if (error != cudaSuccess) return result(error);
    launches.push_back(kernel);
    clusters.push_back(volume(launch.cluster));
  }
  use(config.stream);
  run(launch);
  return cudaSuccess;
}

void use(cudaStream_t stream) {
  std::lock_guard<std::mutex> guard(lock);
  streams.push_back(stream);
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  std::lock_guard<std::mutex> guard(lock);
  Function& function = functions[kernel];
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || value > attributes[cudaDevAttrMaxSharedMemoryPerBlockOptin]) return result(cudaErrorInvalidValue);
    if (value < function.shared_bytes)
      throw std::runtime_error("kernel " + function_name(kernel) + ": the limit of its shared memory is lowered from " +
                               std::to_string(function.shared_bytes) + " to " + std::to_string(value) +
                               " bytes, and another thread may be about to launch it");
    function.shared_bytes = value;
  } else if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    function.large_clusters = value != 0;
  }
  return cudaSuccess;
}

int blocks_per_multiprocessor(int threads, size_t shared_bytes) {
  int warps = (threads + kWarpSize - 1) / kWarpSize;
  int by_threads = attributes[cudaDevAttrMaxThreadsPerMultiProcessor] / (warps * kWarpSize);
  size_t reserved = size_t(attributes[cudaDevAttrReservedSharedMemoryPerBlock]);
  int by_memory = int(size_t(attributes[cudaDevAttrMaxSharedMemoryPerMultiprocessor]) / (shared_bytes + reserved));
  return std::min(attributes[cudaDevAttrMaxBlocksPerMultiprocessor], std::min(by_threads, by_memory));
}

cudaFuncAttributes attributes_of(const void* kernel) {
  std::lock_guard<std::mutex> guard(lock);
  cudaFuncAttributes known;
  known.maxThreadsPerBlock = attributes[cudaDevAttrMaxThreadsPerBlock];
  known.ptxVersion = known.binaryVersion =
      10 * attributes[cudaDevAttrComputeCapabilityMajor] + attributes[cudaDevAttrComputeCapabilityMinor];
  known.maxDynamicSharedSizeBytes = functions[kernel].shared_bytes;
  return known;
}

cudaError_t active_clusters(int& clusters, const void* kernel, const cudaLaunchConfig_t& config) {
  std::lock_guard<std::mutex> guard(lock);
  unsigned blocks = 1;
  for (unsigned i = 0; i < config.numAttrs; ++i)
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension) {
      const auto& size = config.attrs[i].val.clusterDim;
      blocks = size.x * size.y * size.z;
    }
  const Function& function = functions[kernel];
  if (blocks > (function.large_clusters ? kClusterSize : kPortableClusterSize) || volume(config.gridDim) % blocks)
    return result(cudaErrorInvalidClusterSize);
  if (config.dynamicSmemBytes > size_t(function.shared_bytes)) return result(cudaErrorInvalidValue);
  clusters = clusters_at_once(blocks);
  return cudaSuccess;
}

}  // namespace simt

// ---- the runtime's functions that are not templates ----

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorCooperativeLaunchTooLarge:
      return "cudaErrorCooperativeLaunchTooLarge";
    case cudaErrorInvalidClusterSize:
      return "cudaErrorInvalidClusterSize";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    case cudaErrorInvalidClusterSize:
      return "cluster misconfiguration";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetDevice(int* device) {
  *device = device_number;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_number + 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return result(device == device_number ? cudaSuccess : cudaErrorInvalidDevice); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != device_number) return result(cudaErrorInvalidDevice);
  auto found = attributes.find(attribute);
  if (found == attributes.end()) return result(cudaErrorInvalidValue);
  *value = found->second;
  return cudaSuccess;
}

// ---- assert() in a kernel ----

extern "C" __attribute__((noreturn, visibility("hidden"))) void __assert_fail(const char* condition, const char* file,
                                                                              unsigned line, const char*) noexcept {
  if (simt::current)
    simt::fail(*simt::current,
               std::string("assertion `") + condition + "` failed at " + file + ":" + std::to_string(line));
  std::fprintf(stderr, "%s:%u: assertion `%s` failed\n", file, line, condition);
  std::abort();
}

// ---- for tests, through ctypes ----

#define SIMT_EXPORT extern "C" __attribute__((visibility("default")))

SIMT_EXPORT void simt_set_seed(uint64_t value) { simt::seed = value; }
SIMT_EXPORT uint64_t simt_get_seed() { return simt::seed; }
SIMT_EXPORT void simt_set_attribute(int attribute, int value) {
  std::lock_guard<std::mutex> guard(lock);
  if (attributes[attribute] == value) return;
  attributes[attribute] = value;
  functions.clear();
  ++device_number;
}
SIMT_EXPORT int simt_get_attribute(int attribute) { return attributes[attribute]; }
// The kernels launched since the last call, a name per line; valid until the next call.
SIMT_EXPORT const char* simt_take_launches() {
  static std::string taken;
  std::lock_guard<std::mutex> guard(lock);
  taken.clear();
  for (const void* kernel : launches) taken += simt::function_name(kernel) + "\n";
  launches.clear();
  return taken.c_str();
}
// Blocks per cluster of the launches since the last call, one number per line; likewise.
SIMT_EXPORT const char* simt_take_clusters() {
  static std::string taken;
  std::lock_guard<std::mutex> guard(lock);
  taken.clear();
  for (unsigned blocks : clusters) taken += std::to_string(blocks) + "\n";
  clusters.clear();
  return taken.c_str();
}
// What the kernels did since the last call: loads of 16 bytes, smaller ones, barriers of blocks and of clusters.
SIMT_EXPORT void simt_take_counts(uint64_t* four) {
  std::memcpy(four, &simt::counted, sizeof simt::counted);
  simt::counted = {};
}
// The streams that launches, memsets and copies were put on since the last call, one number per line; likewise.
SIMT_EXPORT const char* simt_take_streams() {
  static std::string taken;
  std::lock_guard<std::mutex> guard(lock);
  taken.clear();
  for (cudaStream_t stream : streams) taken += std::to_string(reinterpret_cast<uintptr_t>(stream)) + "\n";
  streams.clear();
  return taken.c_str();
}
