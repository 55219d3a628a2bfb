// Sums over a shard of the samples, for thresholds of samples that are spread over processes: a launch per stage, by
// the teams and with the sweeps of the loss, and a small one for the steps between them (csrc/shard_search.h). Beside
// them the running average of thresholds.
#include "../shard_search.h"
#include "launch.cuh"
#include "loss_sums.cuh"

namespace hypersimplex {
namespace cuda {
namespace {

// ---- sums ----

// A class as the stages before have left it.
template <class T>
struct ShardVectorState : LossVectorState<T> {
  __device__ void resume(const LossArgs& args, const ShardSearch<T>* searches) {
    if (!this->index.live) return;
    const LossState state(args.state, args.shape.inner);
    const int64_t c = this->index.vector;
    this->some_ignored = searches[c].some_ignored;
    this->cancelled = searches[c].cancelled;
    this->search.status = searches[c].search.status;
    this->search.t = {state.p[c], state.d[c]};
    this->projector.set(this->search.t, this->tau);
    if (is_finite(this->search.t.p)) this->projector.aim(this->search.t, this->tau);
  }
};

// What all stages do: sum up, reduce, and have a thread of the team's first block leave the totals of its class.
template <class In>
class ShardSums {
 public:
  using T = Compute<In>;
  using State = ShardVectorState<T>;
  using TileType = Tile<In, false>;

  __device__ ShardSums(const LossArgs& args, const Plan& plan, const ShardCall& call, Team& team, const TileType& tile,
                       State& own)
      : args_(args), plan_(plan), call_(call), team_(team), tile_(tile), own_(own) {}

  __device__ void sum() {
    if (call_.stage == ShardStage::kMoments) return sum_moments();
    if (call_.stage == ShardStage::kLoss) return sum_loss_terms();
    const Samples<In> samples(args_, plan_, tile_, own_.index, own_.some_ignored);
    Sweeps sweeps(team_, tile_, own_, &own_, samples);
    if (call_.stage == ShardStage::kCounts) return sum_counts(sweeps);
    typename Sweeps::Own own;
    sweeps.add_gap(own);
    leave(own, [&](const auto& total) {
      put(0, total.high());
      put(1, -total.low());
    });
  }

 private:
  using Sweeps = Solver<In, TileType, Samples<In>, State>;

  __device__ void put(int row, double value) const { row_of(call_, row, args_.shape.inner)[own_.index.vector] = value; }
  // put_all(total) by one thread per class.
  template <class Own, class PutAll>
  __device__ void leave(const Own& own, PutAll put_all) {
    const auto total = team_.reduce(own, true);
    team_.decide([&] {
      if (own_.index.live && team_.rank() == 0) put_all(total);
      return 0;
    });
  }

  // Of the thresholds that are to be tried, which the team takes one after the other; a tile's classes have as many
  // each as the one that has most.
  __device__ void sum_counts(Sweeps& sweeps) {
    const auto& search = static_cast<const ShardSearch<T>*>(call_.searches)[own_.index.vector];
    const bool searching = own_.index.live && own_.searching();
    for (int i = 0; i < kShardThresholds; ++i) {
      const int wanted = team_.decide([&] {
        const bool wants = searching && i < search.tried;
        if (wants) own_.projector.aim(search.thresholds[i], own_.tau);
        return int(wants);
      });
      if (!wanted) break;  // sums come zeroed
      typename Sweeps::Own own;
      sweeps.add_counts(own);
      leave(own, [&](const auto& total) {
        put(3 * i, total.count(0));
        put(3 * i + 1, total.count(1));
        put(3 * i + 2, total.sum(0));
      });
      block_barrier();
    }
  }

  __device__ void sum_moments() {
    if (args_.target_kind != TargetKind::kNone) {
      const Samples<In> samples(args_, plan_, tile_, own_.index, false);
      Sums<2, 2> counts;
      add_counts(args_, samples, tile_, counts);
      const auto total = team_.reduce(counts, true);
      team_.decide([&] {
        own_.take_counts(args_, samples.dense() ? total.sum(0) : total.count(0), total.count(1), total.sum(1));
        if (own_.index.live && team_.rank() == 0) {
          put(1, total.count(1));
          put(2, samples.dense() ? total.sum(0) : total.count(0));
          put(3, own_.weight);
        }
        return 0;
      });
    } else {
      team_.decide([&] {
        own_.some_ignored = 0;
        if (own_.index.live && team_.rank() == 0) {
          put(1, own_.n);
          put(2, 0);
          put(3, 0);
        }
        return 0;
      });
    }
    const Samples<In> samples(args_, plan_, tile_, own_.index, own_.some_ignored);
    Sweeps sweeps(team_, tile_, own_, &own_, samples);
    typename Sweeps::Own moments, special;
    sweeps.template add_moments<true, false>(moments);
    leave(moments, [&](const auto& total) {
      const double origin = sweeps.origin(own_.index), count = total.count(0), sum = total.sum(0);
      put(0, own_.n);
      put(4, count);
      put(5, sum + count * origin);
      put(6, total.sum(1) + (2 * sum + count * origin) * origin);
      put(9, -total.low());
      put(10, total.high());
      const double k = given(args_.k, own_.index.vector);
      put(11, k);
      put(12, -k);
      put(13, own_.tau);
      put(14, -own_.tau);
      static_cast<ShardSearch<T>*>(call_.searches)[own_.index.vector].some_ignored = own_.some_ignored;
    });
    sweeps.add_special(special);
    leave(special, [&](const auto& total) {
      put(7, total.count(0));
      put(8, total.count(1));
    });
  }

  __device__ void sum_loss_terms() {
    const LabelledSamples<In> samples(args_, plan_, tile_, own_.index, own_.some_ignored);
    LossSums sums[1];
    sum_loss(samples, tile_, &own_, is_fenchel_young(args_), sums);
    leave(sums, [&](const auto& total) {
      put(0, total.count(0) - total.count(1));
      for (int i = 0; i < 3; ++i) put(1 + i, total.sum(i));
    });
  }

  const LossArgs& args_;
  const Plan& plan_;
  const ShardCall& call_;
  Team& team_;
  const TileType& tile_;
  State& own_;
};

template <class In>
__global__ void __launch_bounds__(tuning::kStreamThreads)
    sum_shard(const __grid_constant__ LossArgs args, const __grid_constant__ Plan plan,
              const __grid_constant__ ShardCall call, void* workspace) {
  using T = Compute<In>;
  using State = ShardVectorState<T>;
  Team team(plan, workspace);
  State& own = team.states<State>()[team.column()];
  for (int number = team.number(); number < plan.tiles; number += plan.teams) {
    if (team.decides()) {
      own.begin(locate(plan, args.shape, number, team.column()), plan.n, args.k, args.tau);
      if (call.stage != ShardStage::kMoments) own.resume(args, static_cast<const ShardSearch<T>*>(call.searches));
    }
    block_barrier();
    const Tile<In, false> tile(plan, team, own.index.live, team.bytes<State>());
    ShardSums<In>(args, plan, call, team, tile, own).sum();
    block_barrier();
  }
  team.leave();
}

// ---- steps ----

// By one block.
template <class In>
__global__ void __launch_bounds__(tuning::kPassThreads)
    take_step(const __grid_constant__ LossArgs args, const __grid_constant__ Plan plan,
              const __grid_constant__ ShardCall call) {
  using T = Compute<In>;
  Team team(plan, nullptr);
  Sums<2, 2> own;
  for (int64_t c = threadIdx.x; c < args.shape.inner; c += blockDim.x) {
    ShardStep<T> step(args, call, c);
    step.take();
    own.count[0] += step.pending();
    own.count[1] += step.in_gap();
    own.sum[0] += step.loss();
    own.sum[1] += step.weight();
  }
  const auto total = team.reduce(own, true);
  if (!team.decides()) return;
  call.after[0] = int32_t(total.count(0));
  call.after[1] = int32_t(total.count(1));
  if (call.stage != ShardStage::kLoss) return;
  const double weights = total.sum(1), scale = loss_scale(args.reduction, weights);
  *LossState(args.state, args.shape.inner).scale = scale;
  *static_cast<In*>(call.loss) = narrow<In>(T(reduced_loss(args.reduction, total.sum(0), weights, scale)));
}

template <class T>
__global__ void __launch_bounds__(tuning::kPassThreads) average(const __grid_constant__ ThresholdAverage all) {
  for (int64_t c = threadIdx.x; c < all.classes; c += blockDim.x) average_threshold<T>(all, c);
}

// ---- launches ----

Plan sums_plan(LossArgs& args) {
  Layout layout(
      args.shape, args.dtype,
      {{args.x, &args.x_strides}, {args.target, &args.target_strides, args.target_kind == TargetKind::kDense}});
  size_t state_bytes =
      args.dtype == DType::kFloat64 ? sizeof(ShardVectorState<double>) : sizeof(ShardVectorState<float>);
  const void* kernel = for_storage_type(
      args.dtype, [](auto storage) { return address_of(sum_shard<typename decltype(storage)::type>); });
  return Planner(layout.problem(state_bytes), device_limits(kernel)).streaming();
}

}  // namespace

size_t shard_sums_workspace(const LossArgs& call) {
  LossArgs args = call;
  return GridWorkspace::bytes(sums_plan(args));
}

void shard_sums(const LossArgs& given, const ShardCall& call, void* workspace, void* stream) {
  LossArgs args = given;
  const Plan plan = sums_plan(args);
  for_storage_type(args.dtype, [&](auto storage) {
    using In = typename decltype(storage)::type;
    launch(plan, stream, "shard_sums", sum_shard<In>, args, plan, call, prepare_workspace(plan, workspace, stream));
  });
}

void shard_step(const LossArgs& args, const ShardCall& call, void* stream) {
  const Plan plan = one_block_plan();
  for_storage_type(args.dtype, [&](auto storage) {
    using In = typename decltype(storage)::type;
    launch(plan, stream, "shard_step", take_step<In>, args, plan, call);
  });
}

void average_thresholds(const ThresholdAverage& all, void* stream) {
  const Plan plan = one_block_plan();
  if (all.dtype == DType::kFloat64)
    launch(plan, stream, "average_thresholds", average<double>, all);
  else
    launch(plan, stream, "average_thresholds", average<float>, all);
}

}  // namespace cuda
}  // namespace hypersimplex
