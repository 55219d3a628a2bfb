// What the .cu files here offer to module.cpp.
#pragma once

#include <string>
#include <vector>

using Ints = std::vector<int>;

// correct.cu
Ints block_sum(const Ints& x, int blocks, int threads);
Ints block_scan(const Ints& x);
Ints group_sum(const Ints& x, int width);
Ints cluster_sum(const Ints& x, int cluster, int threads);
Ints grid_rotate(Ints x, int threads, int rounds, bool polling);
int last_block_sum(const Ints& x, int threads);
Ints histogram(const Ints& x, int bins, int threads);

// barriers.cu
Ints missing_barrier(const Ints& x);
Ints missing_syncwarp(const Ints& x);
Ints missing_second_barrier(const Ints& x);
Ints wrong_scope(const Ints& x);
Ints shuffle_for_barrier(const Ints& x);
void barrier_in_branch();
void barrier_in_both_branches();
void warp_waits_for_barrier();
void cluster_barrier_in_branch();
void grid_barrier_without_cooperation();
void lanes_returned();
void lanes_elsewhere();
void source_outside_mask();
void caller_outside_mask();
void partial_warp();
void poll_for_ever();

// memory.cu
void store_outside(int size, int n);
void store_outside_shared(int size, int n);
Ints read_ended_block();
void map_outside();
float read_fresh_shared();
void failed_assertion();
void trap();
void empty(int blocks, int threads, int shared_bytes, int cluster, bool cooperative);
int clusters_at_once(int cluster, bool allowed);
int set_shared_limit(int bytes);

// numbers.cu
float through_half(double v);
float through_bfloat16(double v);
float half_of_bits(int bits);
std::vector<float> float_directed(const std::string& operation, float a, float b);
std::vector<float> float_of_double(double v);
