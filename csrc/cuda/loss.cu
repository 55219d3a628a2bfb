// The HyperSimplex loss, fused. Forward: a team per class, or per classes side by side, counts the labels, finds the
// thresholds, and sums the loss in one more sweep; a last small kernel adds the classes up. Backward: one pass that
// reads logits and targets again and writes the gradient. Between them only numbers per class are kept.
#include "../loss_state.h"
#include "labels.cuh"
#include "loss_gradient.cuh"
#include "loss_sums.cuh"

namespace hypersimplex {
namespace cuda {
namespace {

// Left by the classes for the last kernel, [C] each: their losses, and the weights of the samples that take part.
struct Summands {
  double *losses, *weights;
};

// ---- forward ----

// The two designs: of one class a thread, or of several side by side (wide.cuh).
template <class In, bool kWide>
struct Design {
  using TileType = Tile<In, false>;
  using SamplesType = Samples<In>;
  using Labelled = LabelledSamples<In>;
};
template <class In>
struct Design<In, true> {
  using TileType = WideTile<In, true>;
  using SamplesType = WideSamples<In, true>;
  using Labelled = WideLabelledSamples<In, true>;
};

template <class In, bool kWide>
__global__ void __launch_bounds__(kWide ? tuning::kWideThreads : tuning::kMaxThreads, 1)
    loss_team(const __grid_constant__ LossArgs args, const __grid_constant__ Plan plan, LabelCounts labels,
              Summands summands, void* workspace) {
  using T = Compute<In>;
  using TileType = typename Design<In, kWide>::TileType;
  constexpr int kAbreast = TileType::kAbreast;
  Team team(plan, workspace);
  LossVectorState<T>* const states = team.states<LossVectorState<T>>();
  LossVectorState<T>& own = states[team.column()];
  const LossVectorState<T>* const swept = states + (int(threadIdx.x) * kAbreast & (plan.columns - 1));
  for (int number = team.number(); number < plan.tiles; number += plan.teams) {
    if (team.decides()) {
      own.begin(locate(plan, args.shape, number, team.column()), plan.n, args.k, args.tau);
      own.cancelled = own.guessed = 0;
      if (labels.of_class)
        own.take_counts(args, own.index.live ? labels.number(own.index.vector) : 0, labels.taking_part(),
                        args.sample_weight ? labels.weight() : 0);
    }
    block_barrier();
    const TileType tile(plan, team, swept->index.live, team.bytes<LossVectorState<T>>());
    if constexpr (!kWide)
      if (!labels.of_class) {
        const Samples<In> samples(args, plan, tile, own.index, false);
        Sums<2, 2> counts;
        add_dense_counts(samples, tile, counts);
        const auto total = team.reduce(counts, true);
        team.decide([&] {
          own.take_counts(args, total.sum(0), total.count(1), total.sum(1));
          return 0;
        });
      }
    const typename Design<In, kWide>::Labelled samples(args, plan, tile, swept->index, swept->some_ignored);
    using Search = Solver<In, TileType, typename Design<In, kWide>::SamplesType, LossVectorState<T>>;
    Search search(team, tile, own, swept, samples);

    // A turn finds thresholds and sums up at them. There is another where a guess turns out to be none, of which every
    // vector has one, or where a vector's loss has been cancelled: then it is summed up in double ever after.
    int phase = Search::kMoments;
    if (kWide) {  // the search begins apart, so that what begins it is not kept for other turns
      search.solve();
      phase = Search::kDone;
    }
    do {
      search.template solve<!kWide>(phase);
      LossSums sums[kAbreast];
      sum_loss(samples, tile, swept, is_fenchel_young(args), sums);
      const auto total = team.reduce(sums, true);
      phase = team.decide([&] {
        if (!own.index.live) return int(Search::kDone);
        if (own.searching()) {
          const int next = Search::take_guess(own, total.count(0), total.count(1));
          if (next != Search::kDone) return next;
        }
        const Pair t = own.search.t;
        const double balance = is_fenchel_young(args) && !is_balanced(args) ? total.sum(2) : 0;
        const double shift = threshold_shift(t, own.tau, balance), loss = total.sum(1) + shift;
        if (!own.cancelled && is_cancelled(loss, shift)) {
          own.cancelled = 1;
          return int(Search::kCallers);
        }
        if (team.rank() != 0) return int(Search::kDone);
        const LossState state(args.state, args.shape.inner);
        const int64_t c = own.index.vector;
        state.p[c] = t.p;
        state.d[c] = t.d;
        const double active = total.count(0) - total.count(1);
        state.active[c] = active;
        state.mean[c] = mean_of_active(total.sum(0), active);
        state.k[c] = own.mass;
        state.taking_part[c] = own.taking_part;
        summands.losses[c] = loss;
        summands.weights[c] = own.weight;
        return int(Search::kDone);
      });
      block_barrier();
    } while (phase != Search::kDone);
  }
  team.leave();
}

// loss = scale * sum_c w_c loss_c, by one block.
template <class In>
__global__ void __launch_bounds__(tuning::kPassThreads)
    add_classes(const __grid_constant__ LossArgs args, const __grid_constant__ Plan plan, Summands summands, In* loss) {
  Team team(plan, nullptr);
  Sums<2, 2> own;
  for (int64_t c = threadIdx.x; c < args.shape.inner; c += blockDim.x) {
    const double weight = args.weight ? args.weight[c] : 1;
    own.sum[0] += weight * summands.losses[c];
    own.sum[1] += weight * summands.weights[c];
  }
  const auto total = team.reduce(own, true);
  if (!team.decides()) return;
  const double weights = total.sum(1);
  const double scale = loss_scale(args.reduction, weights);
  *LossState(args.state, args.shape.inner).scale = scale;
  *loss = narrow<In>(Compute<In>(reduced_loss(args.reduction, total.sum(0), weights, scale)));
}

// ---- launches ----

// What a forward launches, and where it keeps what its kernels leave to one another.
struct Forward {
  LossArgs args;
  bool wide;  // whether a thread takes several classes
  Plan team, labels;
  int bins_at;
  LabelCounts counts{};
  Summands summands{};
  char* meetings = nullptr;  // GridWorkspace
  size_t cleared, bytes;

  Forward(const LossArgs& call, void* workspace) : args(call) {
    Layout layout(
        args.shape, args.dtype,
        {{args.x, &args.x_strides}, {args.target, &args.target_strides, args.target_kind == TargetKind::kDense}});
    const bool indices = args.target_kind == TargetKind::kClassIndex;
    const Problem problem = layout.problem(for_storage_type(
        args.dtype, [](auto storage) { return sizeof(LossVectorState<Compute<typename decltype(storage)::type>>); }));
    auto plan_for = [&](auto design) {
      const void* kernel = for_storage_type(args.dtype, [&](auto storage) {
        return address_of(loss_team<typename decltype(storage)::type, decltype(design)::value>);
      });
      const Planner planner(problem, device_limits(kernel));
      const Plan plan = planner.choose(false);
      return decltype(design)::value ? planner.of_wide_threads(plan) : plan;
    };
    wide = indices && problem.wide;
    if (wide) team = plan_for(Constant<true>{});
    wide = wide && team.resident && team.columns >= problem.wide;
    if (!wide) team = plan_for(Constant<false>{});
    labels = label_plan(args, bins_at);

    const size_t classes = size_t(args.shape.inner), counted = indices ? LabelCounts::count_bytes(args) : 0;
    const size_t before = (counted + 127) / 128 * 128, met = before + GridWorkspace::bytes(team);
    cleared = before + GridWorkspace::arrival_bytes(team);
    bytes = met + (2 * classes + (indices ? size_t(labels.teams) : 0)) * sizeof(double);
    char* memory = static_cast<char*>(workspace);
    meetings = memory + before;
    double* numbers = reinterpret_cast<double*>(memory + met);
    summands = {numbers, numbers + classes};
    counts = {indices ? reinterpret_cast<unsigned long long*>(memory) : nullptr, numbers + 2 * classes,
              args.shape.inner, labels.teams};
  }
};

// wide: whether a thread takes several classes.
Plan backward_plan(LossArgs& args, LossBackward& backward, bool& wide) {
  Layout layout(args.shape, args.dtype,
                {{args.x, &args.x_strides},
                 {args.target, &args.target_strides, args.target_kind == TargetKind::kDense},
                 {backward.grad, &backward.grad_strides}});
  size_t state_bytes =
      args.dtype == DType::kFloat64 ? sizeof(GradientVectorState<double>) : sizeof(GradientVectorState<float>);
  const Problem problem = layout.problem(state_bytes);
  const Plan plan = Planner(problem, device_limits()).elementwise();
  wide = problem.wide && args.target_kind == TargetKind::kClassIndex && plan.columns >= problem.wide;
  return plan;
}

}  // namespace

size_t loss_forward_workspace(const LossArgs& call) { return Forward(call, nullptr).bytes; }

void loss_forward(const LossArgs& call, void* loss, void* workspace, void* stream) {
  const Forward plan(call, workspace);
  const Plan total = one_block_plan();
  clear(workspace, plan.cleared, stream);
  if (plan.counts.of_class)
    launch(plan.labels, stream, "loss_forward", count_labels, plan.args, plan.labels, plan.counts, plan.bins_at);
  for_storage_type(call.dtype, [&](auto storage) {
    using In = typename decltype(storage)::type;
    launch(plan.team, stream, "loss_forward", plan.wide ? loss_team<In, true> : loss_team<In, false>, plan.args,
           plan.team, plan.counts, plan.summands, static_cast<void*>(plan.meetings));
    launch(total, stream, "loss_forward", add_classes<In>, plan.args, total, plan.summands, static_cast<In*>(loss));
  });
}

void loss_backward(const LossArgs& call, const LossBackward& results, void* stream) {
  LossArgs args = call;
  LossBackward backward = results;
  bool wide = false;
  const Plan plan = backward_plan(args, backward, wide);
  for_storage_type(args.dtype, [&](auto storage) {
    using In = typename decltype(storage)::type;
    launch(plan, stream, "loss_backward", wide ? loss_gradient_wide<In> : loss_gradient<In>, args, backward, plan);
  });
}

}  // namespace cuda
}  // namespace hypersimplex
