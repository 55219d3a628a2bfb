// Kernels whose instructions are known by hand: what tests/test_budget.py counts in them after they were compiled.
#include <cuda_runtime.h>

// Three additions an entry, which no compiler may merge.
__device__ __forceinline__ float thrice(float v, float step) {
#pragma unroll
  for (int i = 0; i < 3; ++i) asm volatile("add.rn.f32 %0, %0, %1;" : "+f"(v) : "f"(step));
  return v;
}
__device__ __forceinline__ float4 thrice(float4 v, float step) {
  return {thrice(v.x, step), thrice(v.y, step), thrice(v.z, step), thrice(v.w, step)};
}

// U packs of four entries a turn, read together.
template <class T, int U>
__device__ __forceinline__ void add(const float4* from, float4* to, int n, float step) {
  const int i0 = int(blockIdx.x * blockDim.x + threadIdx.x), stride = int(gridDim.x * blockDim.x);
#pragma unroll 1
  for (int i = i0; i < n; i += U * stride) {
    float4 v[U];
#pragma unroll
    for (int u = 0; u < U; ++u) v[u] = __ldg(from + i + u * stride);
#pragma unroll
    for (int u = 0; u < U; ++u) to[i + u * stride] = thrice(v[u], step);
  }
}

template <class T>
__global__ void together(const float4* from, float4* to, int n, float step) {
  add<T, 4>(from, to, n, step);
}
template <class T>
__global__ void singly(const float4* from, float4* to, int n, float step) {
  add<T, 1>(from, to, n, step);
}

// A turn has three barriers, an exchange of five shuffles and, seldom, a long way round.
template <class T>
__global__ void turns(float* data, int n, float step) {
  __shared__ float memory[64];
  float v = data[threadIdx.x];
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    memory[threadIdx.x] = v;
    __syncthreads();
    v = memory[63 - threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int flip = 1; flip < 32; flip *= 2) v += __shfl_xor_sync(0xffffffff, v, flip);
    if (v != v) {
#pragma unroll
      for (int u = 0; u < 50; ++u) asm volatile("mul.rn.f32 %0, %0, %1;" : "+f"(v) : "f"(step));
    }
    __syncthreads();
  }
  data[threadIdx.x] = v;
}

// What lies in local memory: an array with an index that only the caller knows.
template <class T>
__global__ void indexed(const float4* from, float4* to, const int* where, int n) {
  float kept[64];
  for (int i = 0; i < 64; ++i) kept[i] = float(where[i]);
#pragma unroll 1
  for (int i = int(threadIdx.x); i < n; i += 32) {
    float4 v = __ldg(from + i);
    v.x += kept[where[i] & 63];
    to[i] = v;
  }
}

template __global__ void together<float>(const float4*, float4*, int, float);
template __global__ void singly<float>(const float4*, float4*, int, float);
template __global__ void turns<float>(float*, int, float);
template __global__ void indexed<float>(const float4*, float4*, const int*, int);
