// The state of a launch that is running: its blocks, their threads, and the barriers between them.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "simt/api.h"
#include "simt/thread.h"

namespace simt {

// Counts meetings of threads, over all launches: what happened before a meeting has a smaller time.
inline uint64_t now = 1;

struct Barrier {
  unsigned expected = 0, arrived = 0;
  int held = 0;           // for how many the predicate held
  int result = 0;         // of the meeting before
  uint64_t meetings = 0;  // tells a split barrier's waiting half whether it is over
  uint64_t met = 0;       // when all met last: src/shared.cpp
  unsigned gone = 0;      // threads that returned from the kernel and will never come
  const char* operation = nullptr;
  Site site{};
  std::vector<Thread*> asleep;
};

struct Cluster {
  Barrier barrier;
  std::vector<Block*> blocks;
  unsigned live = 0;  // threads
};

struct Block {
  uint3 index;
  Cluster* cluster;
  unsigned rank;  // in the cluster
  unsigned live;  // threads
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<Thread*> threads;
  char* shared;
  size_t shared_bytes;
  uint64_t started;  // when its shared memory became its own
};

// Dynamic shared memory, from one arena so that a checked access finds its block: src/shared.cpp.
void acquire_shared(Block& block, size_t bytes);
void release_shared(Block& block);

// What a launch consists of once host-side checks have passed: src/device.cpp.
struct Launch {
  dim3 grid, block, cluster;
  size_t shared_bytes;
  bool cooperative;
  const void* kernel;
  void (*body)(const void*);
  const void* arguments;
};
void run(const Launch& launch);  // throws std::runtime_error

// The running thread sleeps until another wakes it. Those woken go on in random order.
void suspend(const char* operation, Site site);
void wake(Thread* const* first, Thread* const* last);
// Lets others run once in a while.
void maybe_yield();

inline Barrier grid;  // of a cooperative launch; otherwise nobody is expected
// The thread will not come to any further meeting.
void leave(const Thread& self, Barrier& barrier);
void leave_warp(const Thread& self);
// When two threads of one cluster last met in a barrier, of any kind.
uint64_t last_meeting(const Thread& a, const Thread& b);

const Thread& thread_by_id(unsigned id);

// For messages.
std::string text(uint3 v);
std::string text(Site site);
std::string count(unsigned threads);
std::string name(const Thread& thread);         // block and thread
std::string whereabouts(const Thread& thread);  // kernel, block and thread

// The kernel's name, and " [file:line]" of an instruction, as far as the binary tells: src/symbols.cpp.
std::string function_name(const void* address);
std::string source_line(const void* address);

// The seed that the next launch takes its schedule from; each launch leaves a new one.
extern uint64_t seed;

}  // namespace simt
