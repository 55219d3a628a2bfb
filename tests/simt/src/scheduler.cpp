// Runs a launch: every thread a fiber, one at a time, in an order drawn from the seed. A thread runs until it has to
// wait for others, and then the next one goes on, so that what is missing between two threads shows:
// - threads that run ahead of a barrier that is not there read what others have not written yet;
// - a meeting that not everybody reaches leaves nobody to run, or somebody who returns from the kernel.
#include "scheduler.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <numeric>
#include <stdexcept>

#include "simt/intrinsics.h"

namespace simt {

namespace {

uint64_t seed_from_environment() {
  const char* text = std::getenv("SIMT_SEED");
  return text ? std::strtoull(text, nullptr, 0) : 0;
}

}  // namespace

uint64_t seed = seed_from_environment();

namespace {

struct Runner : Thread {
  explicit Runner(size_t number) : Thread{}, fiber(number) { id = unsigned(number); }
  Fiber fiber;
};

constexpr unsigned kResidentBlocks = 4;    // at most, unless the launch is cooperative or has larger clusters
constexpr unsigned kYieldPeriod = 8;       // an atomic access lets others in once in so many times
constexpr uint64_t kIdleYields = 4000000;  // without any meeting or return: threads poll for what nobody will do

const Launch* running;
Fiber host;
std::vector<std::unique_ptr<Runner>> runners;
std::vector<Runner*> idle;
std::vector<Thread*> ready;  // the last one runs next
std::vector<std::unique_ptr<Block>> resident;
std::vector<std::unique_ptr<Block>> spare_blocks;
std::deque<Cluster> clusters;
uint64_t random_state, idle_yields;
bool block_ended;
std::string failure;

uint64_t draw() {  // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}
size_t below(size_t bound) { return size_t(uint64_t(uint32_t(draw())) * bound >> 32); }

Fiber& fiber_of(Thread* thread) { return static_cast<Runner*>(thread)->fiber; }

// Leaves the running fiber, or the host, for the next one that can run.
void go_on(Fiber& from) {
  Fiber* to = &host;
  if (failure.empty() && !block_ended && !ready.empty()) {
    current = ready.back();
    ready.pop_back();
    threadIdx = current->index;
    blockIdx = current->block->index;
    to = &fiber_of(current);
  } else {
    current = nullptr;
  }
  if (to != &from) Fiber::switch_to(from, *to);
}

void shuffle_ready(size_t first) {
  for (size_t i = ready.size(); i > first + 1; --i) std::swap(ready[i - 1], ready[first + below(i - first)]);
}

// ---- threads and blocks ----

void thread_main() {
  Fiber::arrive();
  running->body(running->arguments);
  Thread& self = *current;
  Block& block = *self.block;
  leave_warp(self);
  leave(self, block.barrier);
  if (block.cluster->blocks.size() > 1) leave(self, block.cluster->barrier);
  if (running->cooperative) leave(self, grid);
  idle_yields = 0;
  --block.cluster->live;
  if (--block.live == 0) {
    release_shared(block);
    block_ended = true;
  }
  go_on(fiber_of(&self));
}

void start_thread(Block& block, unsigned rank) {
  if (idle.empty()) {
    runners.push_back(std::make_unique<Runner>(runners.size()));
    idle.push_back(runners.back().get());
  }
  Runner& self = *idle.back();
  idle.pop_back();
  dim3 size = running->block;
  self.block = &block;
  self.warp = &block.warps[rank / kWarpSize];
  self.lane = rank % kWarpSize;
  self.rank = rank;
  self.index = {rank % size.x, rank / size.x % size.y, rank / size.x / size.y};
  self.waits_at = nullptr;
  self.warp->lanes[self.lane] = &self;
  self.warp->members |= 1u << self.lane;
  self.warp->present |= 1u << self.lane;
  self.fiber.prepare(thread_main);
  block.threads.push_back(&self);
  ready.push_back(&self);
}

void start_block(uint3 index, Cluster& cluster) {
  if (spare_blocks.empty()) spare_blocks.push_back(std::make_unique<Block>());
  std::unique_ptr<Block> owner = std::move(spare_blocks.back());
  spare_blocks.pop_back();
  Block& block = *owner;
  unsigned threads = running->block.x * running->block.y * running->block.z;
  block.index = index;
  block.cluster = &cluster;
  block.rank = unsigned(cluster.blocks.size());
  block.live = threads;
  block.barrier = Barrier();
  block.barrier.expected = threads;
  block.warps.resize((threads + kWarpSize - 1) / kWarpSize);
  for (Warp& warp : block.warps) warp.members = warp.present = warp.waiting = 0;
  acquire_shared(block, running->shared_bytes);
  block.started = ++now;
  cluster.blocks.push_back(&block);
  cluster.live += threads;
  resident.push_back(std::move(owner));
  block.threads.clear();
  for (unsigned rank = 0; rank < threads; ++rank) start_thread(block, rank);
}

// Clusters are numbered as blocks of one block each would be.
void start_cluster(size_t number) {
  dim3 size = running->cluster, count(running->grid.x / size.x, running->grid.y / size.y, running->grid.z / size.z);
  unsigned x = unsigned(number % count.x), y = unsigned(number / count.x % count.y),
           z = unsigned(number / count.x / count.y);
  clusters.emplace_back();
  Cluster& cluster = clusters.back();
  cluster.barrier.expected = size.x * size.y * size.z * running->block.x * running->block.y * running->block.z;
  for (unsigned k = 0; k < size.z; ++k)
    for (unsigned j = 0; j < size.y; ++j)
      for (unsigned i = 0; i < size.x; ++i) start_block({x * size.x + i, y * size.y + j, z * size.z + k}, cluster);
}

void retire(std::unique_ptr<Block>& block) {
  for (Thread* thread : block->threads) idle.push_back(static_cast<Runner*>(thread));
  spare_blocks.push_back(std::move(block));
}

// A cluster's blocks retire together: until then others may ask for the memory of one that has ended.
void retire_ended() {
  for (auto& block : resident)
    if (block->cluster->live == 0) retire(block);
  resident.erase(std::remove(resident.begin(), resident.end(), nullptr), resident.end());
}

void reset() {
  for (auto& block : resident) {
    if (block->live != 0) release_shared(*block);
    retire(block);
  }
  resident.clear();
  ready.clear();
  clusters.clear();
  grid = Barrier();
  current = nullptr;
  block_ended = false;
  failure.clear();
  idle_yields = 0;
}

// Nothing can run and threads are left: says where they wait.
void report_deadlock() {
  std::map<std::string, std::pair<unsigned, const Thread*>> places;
  for (auto& block : resident) {
    for (const Thread* thread : block->threads) {
      if (thread->waits_at == nullptr) continue;
      auto& place = places[std::string(thread->waits_at) + " at " + text(thread->site)];
      if (place.first++ == 0 || thread->rank < place.second->rank) place.second = thread;
    }
  }
  std::string message = "nobody can go on, waiting for each other:";
  for (auto& place : places)
    message += " " + count(place.second.first) + " at " + place.first + " (first: " + name(*place.second.second) + ");";
  const Thread& first = *places.begin()->second.second;
  current = nullptr;
  fail(first, message);
}

}  // namespace

std::string text(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}
std::string text(Site site) { return std::string(site.file) + ":" + std::to_string(site.line); }
std::string count(unsigned threads) { return std::to_string(threads) + (threads == 1 ? " thread" : " threads"); }

std::string name(const Thread& thread) {
  return "block " + text(thread.block->index) + ", thread " + text(thread.index);
}

const Thread& thread_by_id(unsigned id) { return *runners[id]; }

std::string whereabouts(const Thread& thread) {
  return "kernel " + function_name(running->kernel) + ", " + name(thread);
}

void fail(const Thread& thread, const std::string& message) {
  failure = whereabouts(thread) + ": " + message;
  if (current == nullptr) throw std::runtime_error(failure);
  go_on(fiber_of(current));
  __builtin_unreachable();
}

void suspend(const char* operation, Site site) {
  Thread& self = *current;
  self.waits_at = operation;
  self.site = site;
  go_on(fiber_of(&self));
}

void wake(Thread* const* first, Thread* const* last) {
  idle_yields = 0;
  size_t before = ready.size();
  for (; first != last; ++first) {
    (*first)->waits_at = nullptr;
    ready.push_back(*first);
  }
  shuffle_ready(before);
}

void yield() {
  Thread& self = *current;
  if (++idle_yields > kIdleYields) fail(self, "nobody gets anywhere: threads poll for what no other thread will do");
  if (ready.empty()) return;
  ready.push_back(&self);
  std::swap(ready.back(), ready[below(ready.size() - 1)]);
  go_on(fiber_of(&self));
}

void maybe_yield() {
  if (below(kYieldPeriod) == 0) yield();
}

void run(const Launch& what) {
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  uint64_t launch_seed = seed;
  random_state = seed;
  seed = draw();
  running = &what;
  blockDim = what.block;
  gridDim = what.grid;
  size_t cluster_blocks = size_t(what.cluster.x) * what.cluster.y * what.cluster.z;
  size_t blocks = size_t(what.grid.x) * what.grid.y * what.grid.z, count = blocks / cluster_blocks;
  size_t limit = what.cooperative ? blocks : std::max<size_t>(1 + below(kResidentBlocks), cluster_blocks);
  grid.expected = what.cooperative ? unsigned(blocks * what.block.x * what.block.y * what.block.z) : 0;
  try {
    // Blocks start in an order that is no order: a stride coprime to their number.
    size_t stride = count == 1 ? 1 : 1 + below(count - 1), started = 0, at = below(count);
    while (std::gcd(stride, count) != 1) ++stride;
    while (true) {
      size_t first = ready.size();
      for (; started < count && resident.size() + cluster_blocks <= limit; ++started, at = (at + stride) % count)
        start_cluster(at);
      shuffle_ready(first);
      if (ready.empty()) break;
      go_on(host);
      if (!failure.empty()) throw std::runtime_error(failure);
      block_ended = false;
      retire_ended();
    }
    if (!resident.empty()) report_deadlock();
  } catch (const std::exception& error) {
    std::string message = error.what() + (" [SIMT_SEED=" + std::to_string(launch_seed) + "]");
    reset();
    throw std::runtime_error(message);
  }
  reset();
}

}  // namespace simt
