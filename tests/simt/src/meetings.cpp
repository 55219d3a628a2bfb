// Where threads meet: the barriers of a warp, a block, a cluster and the grid, and the exchanges between lanes. A
// meeting that cannot come about is an error as soon as that is certain.
#include <algorithm>
#include <cstring>

#include "scheduler.h"
#include "simt/intrinsics.h"

namespace simt {
namespace {

bool arrive(Barrier& barrier, const char* operation, bool predicate, Site site) {
  Thread& self = *current;
  if (barrier.gone != 0)
    fail(self, std::string(operation) + " at " + text(site) + " cannot be reached by " + count(barrier.gone) +
                   ", returned from the kernel");
  if (barrier.arrived == 0) {
    barrier.operation = operation;
    barrier.site = site;
  } else if (barrier.operation != operation || barrier.site.line != site.line ||
             std::strcmp(barrier.site.file, site.file) != 0) {
    fail(self, "divergent barrier: reaches " + std::string(operation) + " at " + text(site) + " while " +
                   count(barrier.arrived) + " already at " + barrier.operation + " at " + text(barrier.site));
  }
  ++barrier.arrived;
  barrier.held += predicate;
  if (barrier.arrived < barrier.expected) return false;
  barrier.result = barrier.held;
  barrier.arrived = 0;
  barrier.held = 0;
  ++barrier.meetings;
  barrier.met = ++now;
  wake(barrier.asleep.data(), barrier.asleep.data() + barrier.asleep.size());
  barrier.asleep.clear();
  return true;
}

int wait_for_all(Barrier& barrier, const char* operation, bool predicate, Site site) {
  if (!arrive(barrier, operation, predicate, site)) {
    barrier.asleep.push_back(current);
    suspend(operation, site);
  }
  return barrier.result;
}

void note_meeting(Warp& warp, uint32_t mask) {
  ++now;
  if (mask == warp.members)
    warp.met = now;
  else
    for_each_lane(mask, [&](int a) { for_each_lane(mask, [&](int b) { warp.met_pair[a][b] = now; }); });
}

}  // namespace

uint64_t last_meeting(const Thread& a, const Thread& b) {
  uint64_t met = std::max(grid.met, a.block->cluster->barrier.met);
  if (a.block == b.block) met = std::max(met, a.block->barrier.met);
  if (a.warp == b.warp) met = std::max({met, a.warp->met, a.warp->met_pair[a.lane][b.lane]});
  return met;
}

void leave(const Thread& self, Barrier& barrier) {
  if (barrier.arrived != 0)
    fail(self, "returns from the kernel while " + count(barrier.arrived) + " already at " + barrier.operation + " at " +
                   text(barrier.site));
  ++barrier.gone;
}

void leave_warp(const Thread& self) {
  Warp& warp = *self.warp;
  for_each_lane(warp.waiting, [&](int lane) {
    const Thread& peer = *warp.lanes[lane];
    if (peer.mask >> self.lane & 1)
      fail(self, "returns from the kernel while lane " + std::to_string(lane) + " waits for it in " + peer.waits_at +
                     " at " + text(peer.site));
  });
  warp.present &= ~(1u << self.lane);
}

void meet(const char* operation, uint32_t mask, Combine combine, Site site) {
  Thread& self = *current;
  Warp& warp = *self.warp;
  uint32_t own = 1u << self.lane;
  if ((mask & own) == 0) fail(self, std::string(operation) + " at " + text(site) + ": the mask leaves out the caller");
  if (mask & ~warp.present)
    fail(self, std::string(operation) + " at " + text(site) + ": the mask names lane " +
                   std::to_string(__builtin_ctz(mask & ~warp.present)) +
                   ", which is absent: it has returned from the kernel, or the block has no such thread");
  warp.waiting |= own;
  self.mask = mask;
  bool complete = (warp.waiting & mask) == mask;
  if (complete)
    for_each_lane(mask & ~own, [&](int lane) {
      const Thread& peer = *warp.lanes[lane];
      if (peer.mask != mask)
        complete = false;
      else if (peer.waits_at != operation)
        fail(self, "divergent warp: reaches " + std::string(operation) + " at " + text(site) + " while lane " +
                       std::to_string(lane) + " waits for it at " + peer.waits_at + " at " + text(peer.site));
    });
  if (!complete) return suspend(operation, site);
  if (combine)
    combine(warp, mask);
  else
    note_meeting(warp, mask);
  warp.waiting &= ~mask;
  Thread* peers[kWarpSize];
  Thread** last = peers;
  for_each_lane(mask & ~own, [&](int lane) { *last++ = warp.lanes[lane]; });
  wake(peers, last);
}

int block_barrier(const char* operation, bool predicate, Site site) {
  Barrier& barrier = current->block->barrier;
  counted.block_barriers += barrier.arrived + 1 == barrier.expected;
  return wait_for_all(barrier, operation, predicate, site);
}

void cluster_arrive(Site site) {
  Barrier& barrier = current->block->cluster->barrier;
  current->cluster_ticket = barrier.meetings;
  counted.cluster_barriers += barrier.arrived + 1 == barrier.expected;
  arrive(barrier, "cluster barrier", false, site);
}

void cluster_wait(Site site) {
  Barrier& barrier = current->block->cluster->barrier;
  if (barrier.meetings != current->cluster_ticket) return;
  barrier.asleep.push_back(current);
  suspend("cluster barrier", site);
}

void grid_barrier(Site site) {
  if (grid.expected == 0) fail(*current, "grid barrier at " + text(site) + " in a launch that is not cooperative");
  wait_for_all(grid, "grid barrier", false, site);
}

void* map_shared_rank(const void* address, unsigned rank) {
  Thread& self = *current;
  Block& own = *self.block;
  size_t offset = size_t(static_cast<const char*>(address) - own.shared);
  if (offset > own.shared_bytes) fail(self, "map_shared_rank of an address outside the block's own shared memory");
  if (rank >= own.cluster->blocks.size()) fail(self, "map_shared_rank: no block " + std::to_string(rank));
  const Block& other = *own.cluster->blocks[rank];
  if (other.live == 0)
    fail(self, "shared memory of block " + std::to_string(rank) + " of the cluster, which has ended");
  return other.shared + offset;
}

void* shared_memory() { return current->block->shared; }
unsigned cluster_rank() { return current->block->rank; }
unsigned cluster_size() { return unsigned(current->block->cluster->blocks.size()); }

}  // namespace simt
