// What is done per class from numbers per class: the steps between the sums over shards, and the running average of
// thresholds. Compiled once, so that processes on different processors take the same steps.
#include "cpu/simd/errors.h"
#include "cpu/simd/float_environment.h"
#include "cpu/simd/half.h"
#include "shard_search.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {
namespace {

template <class In>
void take_step(const LossArgs& args, const ShardCall& call) {
  double weights = 0, sum = 0;
  call.after[0] = call.after[1] = 0;
  for (int64_t c = 0; c < args.shape.inner; ++c) {
    ShardStep<Compute<In>> step(args, call, c);
    step.take();
    call.after[0] += step.pending();
    call.after[1] += step.in_gap();
    weights += step.weight();
    sum += step.loss();
  }
  if (call.stage != ShardStage::kLoss) return;
  const double scale = loss_scale(args.reduction, weights);
  *LossState(args.state, args.shape.inner).scale = scale;
  store(Compute<In>(reduced_loss(args.reduction, sum, weights, scale)), *static_cast<In*>(call.loss));
}

}  // namespace
}  // namespace HYPERSIMPLEX_ISA

namespace cpu {

void shard_step(const LossArgs& args, const ShardCall& call) {
  using namespace HYPERSIMPLEX_ISA;
  const FloatEnvironment environment;
  switch (args.dtype) {
    case DType::kFloat32:
      return take_step<float>(args, call);
    case DType::kFloat64:
      return take_step<double>(args, call);
    case DType::kFloat16:
      return take_step<Float16>(args, call);
    case DType::kBFloat16:
      return take_step<BFloat16>(args, call);
  }
  raise_unknown_dtype(int(args.dtype));
}

void average_thresholds(const ThresholdAverage& average) {
  const FloatEnvironment environment;
  for (int64_t c = 0; c < average.classes; ++c)
    if (average.dtype == DType::kFloat64)
      average_threshold<double>(average, c);
    else
      average_threshold<float>(average, c);
}

}  // namespace cpu
}  // namespace hypersimplex
