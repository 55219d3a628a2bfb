// Barriers, shuffles, votes, warp reductions, atomics, fences and cached loads.
#pragma once

#include <cstring>
#include <type_traits>

#include "simt/thread.h"

namespace simt {

template <class T>
SIMT_INTRINSIC uint64_t to_bits(T value) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "a lane exchanges at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
SIMT_INTRINSIC T from_bits(uint64_t bits) {
  T value;
  std::memcpy(static_cast<void*>(&value), &bits, sizeof value);
  return value;
}

template <class Visit>
SIMT_INTRINSIC void for_each_lane(uint32_t mask, Visit visit) {
  for (; mask != 0; mask &= mask - 1) visit(__builtin_ctz(mask));
}

inline void check_width(int width) {
  if (width < 1 || width > kWarpSize || (width & (width - 1)) != 0)
    fail(*current, "shuffle of width " + std::to_string(width) + ", not a power of two up to 32");
}

SIMT_INTRINSIC void take_from_source(Warp& warp, uint32_t mask) {
  for_each_lane(mask, [&](int lane) {
    int source = warp.source[lane];
    if ((mask >> source & 1) == 0)
      fail(*warp.lanes[lane], "shuffle reads lane " + std::to_string(source) + ", which takes no part in it");
    warp.out[lane] = warp.in[source];
  });
}

template <class T>
SIMT_INTRINSIC T shuffle(const char* operation, uint32_t mask, T value, int source, Site site) {
  static_assert(!std::is_arithmetic<T>::value || sizeof(T) >= 4, "shuffles move 4 or 8 bytes, or a half");
  Warp& warp = *current->warp;
  unsigned lane = current->lane;
  warp.in[lane] = to_bits(value);
  warp.source[lane] = static_cast<uint8_t>(source);
  meet(operation, mask, take_from_source, site);
  return from_bits<T>(warp.out[lane]);
}

// Every lane brings one value and takes combine(all of them, mask).
template <class T, class Result, Result (*combine)(const Warp&, uint32_t)>
SIMT_INTRINSIC Result agree(const char* operation, uint32_t mask, T value, Site site) {
  Warp& warp = *current->warp;
  unsigned lane = current->lane;
  warp.in[lane] = to_bits(value);
  meet(
      operation, mask,
      [](Warp& met, uint32_t lanes) {
        uint64_t result = to_bits(combine(met, lanes));
        for_each_lane(lanes, [&](int l) { met.out[l] = result; });
      },
      site);
  return from_bits<Result>(warp.out[lane]);
}

inline uint32_t ballot(const Warp& warp, uint32_t mask) {
  uint32_t result = 0;
  for_each_lane(mask, [&](int lane) { result |= uint32_t(warp.in[lane] != 0) << lane; });
  return result;
}

struct Add {
  template <class T>
  T operator()(T a, T b) const {
    return T(a + b);
  }
};
struct Min {
  template <class T>
  T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Max {
  template <class T>
  T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct And {
  template <class T>
  T operator()(T a, T b) const {
    return a & b;
  }
};
struct Or {
  template <class T>
  T operator()(T a, T b) const {
    return a | b;
  }
};
struct Xor {
  template <class T>
  T operator()(T a, T b) const {
    return a ^ b;
  }
};

template <class T, class Operation>
T fold(const Warp& warp, uint32_t mask) {
  T result = from_bits<T>(warp.in[__builtin_ctz(mask)]);
  for_each_lane(mask & (mask - 1), [&](int lane) { result = Operation()(result, from_bits<T>(warp.in[lane])); });
  return result;
}

template <class T, class Update>
SIMT_INTRINSIC T atomic(T* address, Update update) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "atomics work on 4 or 8 bytes");
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0) fail(*current, "misaligned atomic");
  note_atomic(address, sizeof(T));
  T old = *address;
  *address = update(old);
  return old;
}

SIMT_INTRINSIC void count_load(size_t bytes) { ++(bytes == 16 ? counted.packs : counted.entries); }

// A parameter that takes any argument convertible to the type deduced elsewhere, as CUDA's overloads do.
template <class T>
using Convertible = typename std::common_type<T>::type;

}  // namespace simt

// ---- barriers ----

SIMT_INTRINSIC void __syncthreads(simt::Site site = simt::Site::here()) {
  simt::block_barrier("__syncthreads", false, site);
}
SIMT_INTRINSIC int __syncthreads_count(int predicate, simt::Site site = simt::Site::here()) {
  return simt::block_barrier("__syncthreads_count", predicate != 0, site);
}
SIMT_INTRINSIC int __syncthreads_or(int predicate, simt::Site site = simt::Site::here()) {
  return simt::block_barrier("__syncthreads_or", predicate != 0, site) != 0;
}
SIMT_INTRINSIC int __syncthreads_and(int predicate, simt::Site site = simt::Site::here()) {
  return simt::block_barrier("__syncthreads_and", predicate == 0, site) == 0;
}
SIMT_INTRINSIC void __syncwarp(uint32_t mask = 0xffffffff, simt::Site site = simt::Site::here()) {
  simt::meet("__syncwarp", mask, nullptr, site);
}

// ---- shuffles: the source lane is found as PTX's shfl finds it ----

template <class T>
SIMT_INTRINSIC T __shfl_sync(uint32_t mask, T value, int source, int width = 32, simt::Site site = simt::Site::here()) {
  simt::check_width(width);
  int first = int(simt::current->lane) & -width;
  return simt::shuffle("__shfl_sync", mask, value, first | (source & (width - 1)), site);
}
template <class T>
SIMT_INTRINSIC T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                                simt::Site site = simt::Site::here()) {
  simt::check_width(width);
  int lane = int(simt::current->lane), source = lane - int(delta);
  return simt::shuffle("__shfl_up_sync", mask, value, source < (lane & -width) ? lane : source, site);
}
template <class T>
SIMT_INTRINSIC T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                                  simt::Site site = simt::Site::here()) {
  simt::check_width(width);
  int lane = int(simt::current->lane), source = lane + int(delta);
  return simt::shuffle("__shfl_down_sync", mask, value, source > (lane | (width - 1)) ? lane : source, site);
}
template <class T>
SIMT_INTRINSIC T __shfl_xor_sync(uint32_t mask, T value, int flip, int width = 32,
                                 simt::Site site = simt::Site::here()) {
  simt::check_width(width);
  int lane = int(simt::current->lane), source = lane ^ flip;
  return simt::shuffle("__shfl_xor_sync", mask, value, source > (lane | (width - 1)) ? lane : source, site);
}

// ---- votes and reductions ----

SIMT_INTRINSIC uint32_t __ballot_sync(uint32_t mask, int predicate, simt::Site site = simt::Site::here()) {
  return simt::agree<int, uint32_t, simt::ballot>("__ballot_sync", mask, predicate, site);
}
SIMT_INTRINSIC int __any_sync(uint32_t mask, int predicate, simt::Site site = simt::Site::here()) {
  return simt::agree<int, uint32_t, simt::ballot>("__any_sync", mask, predicate, site) != 0;
}
SIMT_INTRINSIC int __all_sync(uint32_t mask, int predicate, simt::Site site = simt::Site::here()) {
  return simt::agree<int, uint32_t, simt::ballot>("__all_sync", mask, predicate, site) == mask;
}
template <class T>
SIMT_INTRINSIC uint32_t __match_any_sync(uint32_t mask, T value, simt::Site site = simt::Site::here()) {
  simt::Warp& warp = *simt::current->warp;
  unsigned lane = simt::current->lane;
  warp.in[lane] = simt::to_bits(value);
  simt::meet(
      "__match_any_sync", mask,
      [](simt::Warp& met, uint32_t lanes) {
        simt::for_each_lane(lanes, [&](int l) {
          met.out[l] = 0;
          simt::for_each_lane(lanes, [&](int other) { met.out[l] |= uint64_t(met.in[other] == met.in[l]) << other; });
        });
      },
      site);
  return uint32_t(warp.out[lane]);
}

#define SIMT_REDUCE(name, T, Operation)                                                                     \
  SIMT_INTRINSIC T __reduce_##name##_sync(uint32_t mask, T value, simt::Site site = simt::Site::here()) {   \
    return simt::agree<T, T, simt::fold<T, simt::Operation>>("__reduce_" #name "_sync", mask, value, site); \
  }
SIMT_REDUCE(add, unsigned, Add)
SIMT_REDUCE(add, int, Add)
SIMT_REDUCE(min, unsigned, Min)
SIMT_REDUCE(min, int, Min)
SIMT_REDUCE(max, unsigned, Max)
SIMT_REDUCE(max, int, Max)
SIMT_REDUCE(and, unsigned, And)
SIMT_REDUCE(or, unsigned, Or)
SIMT_REDUCE(xor, unsigned, Xor)
#undef SIMT_REDUCE

// The lanes of a warp run one after another here, so only the caller is certain to be active.
SIMT_INTRINSIC uint32_t __activemask() { return 1u << simt::current->lane; }

// ---- atomics ----

#define SIMT_ATOMIC(name, expression)                                                \
  template <class T>                                                                 \
  SIMT_INTRINSIC T name(T* address, simt::Convertible<T> value) {                    \
    return simt::atomic(address, [&](T old) -> T { return (void)old, expression; }); \
  }
SIMT_ATOMIC(atomicAdd, simt::Add()(old, value))
SIMT_ATOMIC(atomicSub, T(old - value))
SIMT_ATOMIC(atomicMin, simt::Min()(old, value))
SIMT_ATOMIC(atomicMax, simt::Max()(old, value))
SIMT_ATOMIC(atomicAnd, simt::And()(old, value))
SIMT_ATOMIC(atomicOr, simt::Or()(old, value))
SIMT_ATOMIC(atomicXor, simt::Xor()(old, value))
SIMT_ATOMIC(atomicExch, value)
SIMT_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
SIMT_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
#undef SIMT_ATOMIC

template <class T>
SIMT_INTRINSIC T atomicCAS(T* address, simt::Convertible<T> compare, simt::Convertible<T> value) {
  return simt::atomic(address, [&](T old) { return old == compare ? value : old; });
}

// ---- memory order and caches: memory is sequentially consistent here ----

SIMT_INTRINSIC void __threadfence() { simt::yield(); }
SIMT_INTRINSIC void __threadfence_block() { simt::yield(); }
SIMT_INTRINSIC void __threadfence_system() { simt::yield(); }
SIMT_INTRINSIC void __nanosleep(unsigned) { simt::yield(); }

#define SIMT_LOAD(name)             \
  template <class T>                \
  inline T name(const T* address) { \
    simt::count_load(sizeof(T));    \
    return *address;                \
  }
SIMT_LOAD(__ldg)
SIMT_LOAD(__ldca)
SIMT_LOAD(__ldcg)
SIMT_LOAD(__ldcs)
SIMT_LOAD(__ldlu)
SIMT_LOAD(__ldcv)
#undef SIMT_LOAD
#define SIMT_STORE(name)                                     \
  template <class T>                                         \
  inline void name(T* address, simt::Convertible<T> value) { \
    *address = value;                                        \
  }
SIMT_STORE(__stwb)
SIMT_STORE(__stcg)
SIMT_STORE(__stcs)
SIMT_STORE(__stwt)
#undef SIMT_STORE

[[noreturn]] SIMT_INTRINSIC void __trap() { simt::fail(*simt::current, "__trap()"); }

#define __builtin_assume(condition) ((void)0)
