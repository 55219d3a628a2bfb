// _simt_faults: the kernels of this folder as Python functions.
#include "module.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

PYBIND11_MODULE(_simt_faults, m) {
#define SIMT_BIND(name) m.def(#name, &name)
  SIMT_BIND(block_sum);
  SIMT_BIND(block_scan);
  SIMT_BIND(group_sum);
  SIMT_BIND(cluster_sum);
  SIMT_BIND(grid_rotate);
  SIMT_BIND(last_block_sum);
  SIMT_BIND(histogram);
  SIMT_BIND(missing_barrier);
  SIMT_BIND(missing_syncwarp);
  SIMT_BIND(missing_second_barrier);
  SIMT_BIND(wrong_scope);
  SIMT_BIND(shuffle_for_barrier);
  SIMT_BIND(barrier_in_branch);
  SIMT_BIND(barrier_in_both_branches);
  SIMT_BIND(warp_waits_for_barrier);
  SIMT_BIND(cluster_barrier_in_branch);
  SIMT_BIND(grid_barrier_without_cooperation);
  SIMT_BIND(lanes_returned);
  SIMT_BIND(lanes_elsewhere);
  SIMT_BIND(source_outside_mask);
  SIMT_BIND(caller_outside_mask);
  SIMT_BIND(partial_warp);
  SIMT_BIND(poll_for_ever);
  SIMT_BIND(store_outside);
  SIMT_BIND(store_outside_shared);
  SIMT_BIND(read_ended_block);
  SIMT_BIND(map_outside);
  SIMT_BIND(read_fresh_shared);
  SIMT_BIND(failed_assertion);
  SIMT_BIND(trap);
  SIMT_BIND(empty);
  SIMT_BIND(clusters_at_once);
  SIMT_BIND(set_shared_limit);
  SIMT_BIND(through_half);
  SIMT_BIND(through_bfloat16);
  SIMT_BIND(half_of_bits);
  SIMT_BIND(float_directed);
  SIMT_BIND(float_of_double);
#undef SIMT_BIND
}
