// The groups that are more than a block's worth of intrinsics: clusters and cooperative grids.
#pragma once

#include "simt/thread.h"

namespace cooperative_groups {

namespace details {
inline unsigned linear(uint3 at, dim3 size) { return at.x + size.x * (at.y + size.y * at.z); }
inline unsigned count(dim3 size) { return size.x * size.y * size.z; }
}  // namespace details

struct thread_block {
  void sync(simt::Site site = simt::Site::here()) const { simt::block_barrier("thread_block::sync", false, site); }
  unsigned thread_rank() const { return simt::current->rank; }
  unsigned num_threads() const { return details::count(blockDim); }
  unsigned size() const { return num_threads(); }
};

struct cluster_group {
  void sync(simt::Site site = simt::Site::here()) const {
    simt::cluster_arrive(site);
    simt::cluster_wait(site);
  }
  void barrier_arrive(simt::Site site = simt::Site::here()) const { simt::cluster_arrive(site); }
  void barrier_wait(simt::Site site = simt::Site::here()) const { simt::cluster_wait(site); }
  unsigned block_rank() const { return simt::cluster_rank(); }
  unsigned num_blocks() const { return simt::cluster_size(); }
  unsigned thread_rank() const { return block_rank() * details::count(blockDim) + simt::current->rank; }
  unsigned num_threads() const { return num_blocks() * details::count(blockDim); }
  template <class T>
  T* map_shared_rank(T* address, unsigned rank) const {
    return static_cast<T*>(simt::map_shared_rank(address, rank));
  }
};

struct grid_group {
  void sync(simt::Site site = simt::Site::here()) const { simt::grid_barrier(site); }
  unsigned block_rank() const { return details::linear(blockIdx, gridDim); }
  unsigned num_blocks() const { return details::count(gridDim); }
  unsigned long long thread_rank() const {
    return 1ull * block_rank() * details::count(blockDim) + simt::current->rank;
  }
  unsigned long long num_threads() const { return 1ull * num_blocks() * details::count(blockDim); }
};

inline thread_block this_thread_block() { return {}; }
inline cluster_group this_cluster() { return {}; }
inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups
