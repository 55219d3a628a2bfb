// What threads and warps do that needs intrinsics: storage types, 16-byte accesses, exchange and reduction over lanes.
// Together with block.cuh the only place for them, so that what has to stand in for a GPU in tests stays small.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../newton.h"

namespace hypersimplex {
namespace cuda {

// ---- numbers: halves are stored, and computed with in float32 ----

template <class In>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class In>
using Compute = typename ComputeOf<In>::type;

// A value that a kernel is compiled for.
template <bool kValue>
struct Constant {
  static constexpr bool value = kValue;
};

template <class T>
constexpr T kInfinity = T(HUGE_VAL);

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class In>
__device__ __forceinline__ In narrow(Compute<In> v) {
  return v;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// In float32, with the last bit set where v lies between two of its numbers: a half rounded from that is v rounded
// once.
__device__ __forceinline__ float round_to_odd(double v) {
  float nearest = float(v);
  if (double(nearest) == v || v != v || fabs(nearest) == kInfinity<float>) return nearest;
  uint32_t bits;
  memcpy(&bits, &nearest, sizeof bits);
  if ((fabs(double(nearest)) > fabs(v))) --bits;  // toward zero
  bits |= 1;
  memcpy(&nearest, &bits, sizeof bits);
  return nearest;
}

template <class T>
__device__ __forceinline__ bool is_finite(T v) {
  return fabs(v) <= kLargest<T>;
}
// The lesser and the greater of a number and another, or of a number and a nan, which is then b: the number.
__device__ __forceinline__ float lesser(float a, float b) { return fminf(a, b); }
__device__ __forceinline__ float greater(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double lesser(double a, double b) { return b < a ? b : a; }
__device__ __forceinline__ double greater(double a, double b) { return b > a ? b : a; }
__device__ __forceinline__ float clip01(float v) { return __saturatef(v); }  // nan -> 0
__device__ __forceinline__ double clip01(double v) { return v > 0 ? (v < 1 ? v : 1) : 0; }

// a / b for 0 <= a, 2 <= b, a * b < 2^64, from inverse_of(b) in tuning.h.
__device__ __forceinline__ int64_t quotient(int64_t a, uint64_t inverse) {
  return int64_t(static_cast<unsigned __int128>(a) * inverse >> 64);
}

// ---- memory ----

constexpr int kPackBytes = 16;
template <class In>
constexpr int kPack = kPackBytes / int(sizeof(In));  // entries of a 16-byte access

// What one access moves: 16 bytes, or 8.
template <int kBytes>
struct PackOf {
  static_assert(kBytes == kPackBytes, "accesses are of 8 or 16 bytes");
  using type = uint4;
};
template <>
struct PackOf<8> {
  using type = uint2;
};
template <class In, int N>
using Pack = typename PackOf<N* int(sizeof(In))>::type;

template <class In, int N>
__device__ __forceinline__ void unpack(Pack<In, N> raw, Compute<In> (&to)[N]) {
  In entries[N];
  memcpy(entries, &raw, sizeof raw);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = widen(entries[i]);
}
template <class In, int N>
__device__ __forceinline__ Pack<In, N> pack(const Compute<In> (&from)[N]) {
  In entries[N];
#pragma unroll
  for (int i = 0; i < N; ++i) entries[i] = narrow<In>(from[i]);
  Pack<In, N> raw;
  memcpy(&raw, entries, sizeof raw);
  return raw;
}

// Global memory that no thread of the kernel writes.
template <class In>
__device__ __forceinline__ In load_constant(const In* from) {
  return __ldg(from);
}
template <class In>
__device__ __forceinline__ uint4 load_constant_pack(const In* from) {
  return __ldg(reinterpret_cast<const uint4*>(from));
}
// Memory that other blocks may have written meanwhile: read anew.
__device__ __forceinline__ double load_from_blocks(const double* from) {
  return *static_cast<const volatile double*>(from);
}

// ---- lanes ----

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffff;

__device__ __forceinline__ int lane_id() { return int(threadIdx.x) % kWarpSize; }
__device__ __forceinline__ int warp_id() { return int(threadIdx.x) / kWarpSize; }
__device__ __forceinline__ int warp_count() { return int(blockDim.x) / kWarpSize; }

__device__ __forceinline__ void warp_barrier() { __syncwarp(); }
__device__ __forceinline__ bool any_lane(bool predicate) { return __any_sync(kAllLanes, predicate); }
__device__ __forceinline__ unsigned lanes_where(bool predicate) { return __ballot_sync(kAllLanes, predicate); }
__device__ __forceinline__ int lane_count(unsigned lanes) { return __popc(lanes); }

__device__ __forceinline__ int lowest_bit(unsigned bits) { return __ffs(int(bits)) - 1; }    // of some
__device__ __forceinline__ int highest_bit(unsigned bits) { return 31 - __clz(int(bits)); }  // of some

template <class T>
__device__ __forceinline__ T from_lane(T v, int lane) {
  return __shfl_sync(kAllLanes, v, lane);
}

// The first p in [low, high) for which the predicate holds, as it then does up to high; or high. The lanes of a warp
// come here together, and `lanes` neighbours each, a power of two, search a range of their own.
template <class Index, class Predicate>
__device__ __forceinline__ Index first_where(Index low, Index high, int lanes, Predicate holds) {
  const int own = lane_id() & (lanes - 1), first = lane_id() - own;
  // The predicate fails everywhere below low, and holds at high or high is the end. Each turn asks at `lanes` places
  // between them and keeps what lies between two of these, so a range becomes empty.
  while (any_lane(low < high)) {
    const Index step = (high - low + lanes) / (lanes + 1), p = low + (own + 1) * step - 1;
    const unsigned votes = lanes_where(low >= high || p >= high || holds(p)) >> first;
    if (low >= high) continue;
    const int failed = votes == 0 ? lanes : lowest_bit(votes) < lanes ? lowest_bit(votes) : lanes;
    if (failed < lanes && low + (failed + 1) * step - 1 < high) high = low + (failed + 1) * step - 1;
    low += failed * step;
    if (low > high) low = high;
  }
  return low;
}

// The lanes of a warp that work on one vector: their numbers differ in the bits `first`, 2 `first`, ... below `end`.
// Both are powers of two, and `first` is 1 where the lanes are neighbours.
struct LaneGroup {
  int first, end;
};

// Leaves the same bits in every lane of the group, if `combine` commutes. Before each turn a lane holds the result over
// the lanes whose numbers differ from its own only in bits below `flip`.
template <class T, class Combine>
__device__ __forceinline__ T reduce(T v, LaneGroup lanes, Combine combine) {
  if (lanes.first == 1 && lanes.end == kWarpSize) {
#pragma unroll
    for (int flip = 1; flip < kWarpSize; flip *= 2) v = combine(v, __shfl_xor_sync(kAllLanes, v, flip));
    return v;
  }
#pragma unroll 1
  for (int flip = lanes.first; flip < lanes.end; flip *= 2) v = combine(v, __shfl_xor_sync(kAllLanes, v, flip));
  return v;
}
template <class T>
__device__ __forceinline__ T sum(T v, LaneGroup lanes) {
  return reduce(v, lanes, [](T a, T b) { return a + b; });
}
template <>
__device__ __forceinline__ unsigned sum(unsigned v, LaneGroup lanes) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  if (lanes.first == 1 && lanes.end == kWarpSize) return __reduce_add_sync(kAllLanes, v);
#endif
  return reduce(v, lanes, [](unsigned a, unsigned b) { return a + b; });
}
__device__ __forceinline__ int either(int v) {
  return reduce(v, {1, kWarpSize}, [](int a, int b) { return a | b; });
}
template <class T>
__device__ __forceinline__ T smallest(T v, LaneGroup lanes) {
  return reduce(v, lanes, [](T a, T b) { return lesser(a, b); });
}
template <class T>
__device__ __forceinline__ T largest(T v, LaneGroup lanes) {
  return reduce(v, lanes, [](T a, T b) { return greater(a, b); });
}

// What the lane holds whose number differs in the bit `flip`.
template <class T>
__device__ __forceinline__ T from_lane_xor(T v, int flip) {
  return __shfl_xor_sync(kAllLanes, v, flip);
}

}  // namespace cuda
}  // namespace hypersimplex
