// What a running thread sees of the emulator: itself, its warp, and the places where threads meet.
// Everything here is implemented in src/; kernels reach it only through CUDA's own names in intrinsics.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "simt/types.h"

// Accesses that an intrinsic makes to shared memory are not the kernel's plain loads and stores: src/shared.cpp.
#define SIMT_INTRINSIC __attribute__((no_sanitize("thread"))) inline

namespace simt {

constexpr int kWarpSize = 32;

// Where in the kernel's source an intrinsic stands, captured by a default argument.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

struct Warp;
struct Block;

struct Thread {
  Block* block;
  Warp* warp;
  unsigned lane;
  unsigned rank;  // in the block
  uint3 index;    // threadIdx
  unsigned id;    // of this object, for the record of accesses to shared memory

  // Where it sleeps; `waits_at` is null while it can run.
  const char* waits_at;
  Site site;
  uint32_t mask;            // of a meeting within the warp
  uint64_t cluster_ticket;  // of a split cluster barrier
};

struct Warp {
  Thread* lanes[kWarpSize];
  uint32_t members;  // lanes that the block has
  uint32_t present;  // of these, not yet returned from the kernel
  uint32_t waiting;  // of these, asleep in a meeting of the warp
  // What a lane brings to a meeting, and takes from it.
  uint64_t in[kWarpSize], out[kWarpSize];
  uint8_t source[kWarpSize];
  // When all lanes, and when two lanes, last met in a barrier.
  uint64_t met;
  uint64_t met_pair[kWarpSize][kWarpSize];
};

// What all launches did since somebody last asked: cached loads by size, 16 bytes and fewer, and meetings, once each
// for all who come.
struct Counted {
  uint64_t packs, entries, block_barriers, cluster_barriers;
};
inline Counted counted{};

inline Thread* current = nullptr;  // the running thread; null on the host

// Ends the launch: cudaLaunchKernelEx throws std::runtime_error naming the kernel, the thread and its block.
[[noreturn]] void fail(const Thread& thread, const std::string& message);

// Waits until every lane of `mask` has come with the same mask and operation; the last one runs `combine`, which hands
// out the results. Without one the meeting is a barrier: exchanges between lanes do not order accesses to memory.
using Combine = void (*)(Warp& warp, uint32_t mask);
void meet(const char* operation, uint32_t mask, Combine combine, Site site);

// Waits until every thread of the block has come; returns for how many the predicate held.
int block_barrier(const char* operation, bool predicate, Site site);
void cluster_arrive(Site site);
void cluster_wait(Site site);
void grid_barrier(Site site);

// Lets others run, so that a thread that polls memory does not wait for ever; an error if nobody gets anywhere.
void yield();

// Notes an atomic access: other threads may come in between, and it does not race with other atomic accesses.
void note_atomic(const void* address, size_t bytes);

// The running block's dynamic shared memory, and the same place in another block of its cluster.
void* shared_memory();
void* map_shared_rank(const void* address, unsigned rank);

unsigned cluster_rank();
unsigned cluster_size();

}  // namespace simt

inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim, gridDim;
constexpr int warpSize = simt::kWarpSize;
