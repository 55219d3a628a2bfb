// Counts class indices before the loss is computed: how many samples bear each label, how many take part, and what
// these weigh. One pass over the labels serves all classes.
#pragma once

#include "launch.cuh"

namespace hypersimplex {
namespace cuda {

// What count_labels() leaves; the counts were zero at first.
struct LabelCounts {
  unsigned long long* of_class;  // [C], and behind them one number, of the samples that take part
  double* weights;               // [blocks], of the samples that take part: sums of the blocks' shares
  int64_t classes;
  int blocks;

  static size_t count_bytes(const LossArgs& args) { return (size_t(args.shape.inner) + 1) * sizeof *of_class; }

  // Of class c and of all samples; the sum has a fixed order.
  __device__ double number(int64_t c) const { return double(of_class[c]); }
  __device__ double taking_part() const { return double(of_class[classes]); }
  __device__ double weight() const {
    double sum = 0;
#pragma unroll 1
    for (int b = 0; b < blocks; ++b) sum += weights[b];
    return sum;
  }
};

// Each block takes a share of the labels, and counts them in shared memory where the classes are few enough.
__global__ void __launch_bounds__(tuning::kPassThreads)
    count_labels(const __grid_constant__ LossArgs args, const __grid_constant__ Plan plan, LabelCounts counts,
                 int bins_at) {
  Team team(plan, nullptr);
  const int64_t begin = team.number() * plan.share, left = plan.n - begin, classes = args.shape.inner;
  const int count = int(left < 0 ? 0 : left < plan.share ? left : plan.share);
  const Operand<const int64_t> labels(static_cast<const int64_t*>(args.target), args.target_strides, args.shape, plan,
                                      VectorIndex{}, begin);
  unsigned* bins = bins_at ? shared_memory<unsigned>(bins_at) : nullptr;
  if (bins)
    for (int64_t c = threadIdx.x; c < classes; c += blockDim.x) bins[c] = 0;
  block_barrier();
  Sums<2, 1> own;
  bool out_of_range = false;
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
    const int64_t label = load_constant(labels.entry(i));
    if (label == args.ignore_index) continue;
    if (label < 0 || label >= classes) {
      out_of_range = true;
      continue;
    }
    if (bins)
      count_up(bins + label, 1u);
    else
      count_up(counts.of_class + label, 1ull);
    ++own.count[0];
    own.sum[0] += args.sample_weight ? load_constant(args.sample_weight + begin + i) : 1;
  }
  const auto total = team.reduce(own, true);
  if (team.decides()) {
    counts.weights[team.number()] = total.sum(0);
    count_up(counts.of_class + classes, static_cast<unsigned long long>(total.count(0)));
  }
  if (bins)
    for (int64_t c = threadIdx.x; c < classes; c += blockDim.x)
      if (bins[c]) count_up(counts.of_class + c, static_cast<unsigned long long>(bins[c]));
  assert(!out_of_range && "class index out of range");
}

// The blocks of one pass over n labels, and where their bins are in shared memory; 0: nowhere.
inline Plan label_plan(const LossArgs& args, int& bins_at) {
  Plan plan = one_block_plan();
  plan.n = args.shape.n1 * args.shape.n2;
  plan.inverse_n2 = inverse_of(args.shape.n2);
  const int64_t most = device_limits().multiprocessors, useful = ceil_div(plan.n, tuning::kLabelShare);
  plan.teams = int(useful < most ? useful : most);  // of a block each, as they exchange nothing
  plan.share = ceil_div(plan.n, plan.teams);
  bins_at = args.shape.inner <= tuning::kMostBins ? plan.shared_bytes : 0;
  if (bins_at) plan.shared_bytes += int(args.shape.inner) * int(sizeof(unsigned));
  return plan;
}

}  // namespace cuda
}  // namespace hypersimplex
