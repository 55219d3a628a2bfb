// Long vectors, of which each pass over all entries counts. A sample tells between which thresholds the root lies; one
// pass sums up the entries that these decide, and lists the others; the search goes on among those. Where the mass is
// small there is no upper end: what is not zero is listed, the pass writes the zeros, and no other pass is due.
//
//     sample     every kSampled-th entry           ->  lo, hi
//     pass       x <= lo                           ->  zero
//                hi < x < lo + tau                 ->  active: counted and summed
//                x >= hi + tau                     ->  one: counted
//                else                              ->  listed
//     search     among what is listed              ->  t
//     last pass                                    ->  y
//
// Where that does not work out, as the root lies elsewhere, lists are full, or entries are no numbers, all is done anew
// in sweeps over all entries.
#include "lists.cuh"
#include "long_vectors.cuh"

namespace hypersimplex {
namespace cuda {
namespace {

constexpr double kDeviations = 5;  // of a sample's share of the mass, next to never exceeded

enum Route : int { kSweeps = 0, kBetween = 1, kOpen = 2 };  // how a vector is solved

template <class T>
struct alignas(16) LongState : VectorState<T> {
  Bracket<T> bracket;
  Sweep at_lo;
  double whole, lower_mass;  // the mass of all entries, and the sample's at the upper end of the bracket
  bool numbers;              // whether no entry is NaN

  // Makes the state that of a sample of so many entries.
  __device__ int begin_sample(double size) {
    const double share = size * (this->mass / this->n), slack = kDeviations * sqrt(share * (1 - share / size)) + 3;
    const bool wanted =
        this->mass > 0 && share + slack < size && is_temperature(this->tau) && unit_of<T>(this->tau) == 1;
    if (!wanted) return kSweeps;
    whole = this->mass;
    this->n = size;
    this->mass = share + slack;
    lower_mass = share - slack;
    return lower_mass > 0 ? kBetween : kOpen;
  }
  // From the sample's root for the greater mass to that for the smaller one.
  __device__ void go_up() {
    bracket.lo = this->search.t;
    this->mass = lower_mass;
    this->start();
  }
  // Both roots are known, or the one of an open bracket. The state is that of all entries again.
  __device__ bool take_bracket(int route) {
    const Pair t = this->search.t;
    this->mass = whole;
    if (route == kOpen) {
      bracket.set_open(t);
      return is_finite(t.p);
    }
    bracket.set(bracket.lo, t, this->tau);
    return is_finite(bracket.lo.p) && is_finite(t.p) && difference(t, bracket.lo) > 0;
  }
  // Of the entries, `taken` are not zero at the lower end, or are NaN.
  __device__ void take_lower_end(const Sweep& counted, double taken) {
    at_lo = counted;
    numbers = counted.g == taken;
  }
  __device__ bool start_between(const Sweep& at_hi) {
    return numbers && is_finite(bracket.hi.p) &&
           this->search.start_between(this->mass, this->tau, bracket.lo, bracket.hi, at_lo, at_hi);
  }
};

// Solves a vector, or returns kSweeps.
template <class In>
class LongVector {
 public:
  using T = Compute<In>;

  __device__ LongVector(const ThresholdArgs& args, const Plan& plan, Team& team, LongState<T>& own)
      : args_(args), plan_(plan), team_(team), own_(own) {}

  // Leaves a bracket in the state, and returns the route, as far as begin_sample() allowed it.
  __device__ __forceinline__ int bracket(int route, const Plan& sample, const Strides& apart) {
    using SampleTile = Tile<In, false, 1, false>;
    const SampleTile tile(sample, team_, true, 0);
    const Operand<const In> x(static_cast<const In*>(args_.x), apart, args_.shape, sample, own_.index, tile.begin());
    const Entries<In, SampleTile> entries{tile, x, -kInfinity<T>};
    Solver<In, SampleTile, Entries<In, SampleTile>, LongState<T>> solver(team_, tile, own_, &own_, entries);
    solver.solve();
    if (route == kBetween) {
      const int phase = team_.decide_next([&] {
        own_.go_up();
        return solver.settle(own_);
      });
      solver.solve(phase);
    }
    route = team_.decide_next([&] { return own_.take_bracket(route) ? route : kSweeps; });
    if (route == kSweeps) return route;

    // How many the lists will have to hold.
    const Bracket<T> of = own_.bracket;
    Sums<2, 2> undecided;
    tile.sweep(
        entries,
        [&](int, const auto& v) {
          for (T e : v) undecided.count[0] += !of.zero(e) && (route == kOpen || !(of.active(e) || of.one(e)));
        },
        [] {});
    const auto total = team_.reduce(undecided, false);
    return team_.decide([&] {
      const double expected = total.count(0) * tuning::kSampled / (double(plan_.blocks) * blockDim.x);
      return expected + 6 * sqrt(expected) + 3 < Lists<In>::slots(plan_, route == kOpen) ? route : kSweeps;
    });
  }

  // The root, from lists of what the bracket leaves undecided.
  __device__ __forceinline__ int search(int route, const Lists<In>& lists) {
    using Search = Solver<In, Lists<In>, Lists<In>, LongState<T>>;
    Search solver(team_, lists, own_, &own_, lists);
    const int ends = route == kOpen ? 1 : 2;
    int phase = team_.decide_next([&] {
      own_.projector.aim(own_.bracket.lo, own_.tau);
      return 0;
    });
    // Before each turn the projector aims at the lower end, then at the upper one; after the last `phase` says how the
    // search begins, or kNowhere.
#pragma unroll 1
    for (int end = 0; end < ends; ++end) {
      typename Search::Own own;
      solver.add_counts(own);
      own[0].sum[1] = lists.taken();
      own[0].high = lists.greatest();
      if (lists.full()) own[0].sum[1] = -kInfinity<double>;  // which is not how many were counted
      const auto total = team_.reduce(own, true);
      phase = team_.decide([&] {
        const Sweep here{total.count(0), total.count(1), total.sum(0)};
        if (end == 0) own_.take_lower_end(here, total.sum(1));
        const bool open = route == kOpen;
        if (open) own_.bracket.hi = {total.high(), 0};
        own_.projector.aim(own_.bracket.hi, own_.tau);
        if (end < ends - 1) return 0;
        return own_.start_between(open ? Sweep{0, 0, 0} : here) ? solver.settle(own_) : kNowhere;
      });
    }
    if (phase == kNowhere) return kSweeps;
    solver.template solve<false>(phase);
    return route;
  }

 private:
  static constexpr int kNowhere = -1;

  const ThresholdArgs& args_;
  const Plan& plan_;
  Team& team_;
  LongState<T>& own_;
};

template <class In>
__global__ void __launch_bounds__(tuning::kStreamThreads, tuning::kStreamBlocks)
    project_long(const __grid_constant__ ThresholdArgs args, const __grid_constant__ Plan plan,
                 const __grid_constant__ Plan sample, const __grid_constant__ Strides apart, void* workspace) {
  using T = Compute<In>;
  Team team(plan, workspace);
  LongState<T>& own = *team.states<LongState<T>>();
  const int kept_at = team.bytes<LongState<T>>();
  for (int number = team.number(); number < plan.tiles; number += plan.teams) {
    auto begin = [&] { own.begin(locate(plan, args.shape, number, 0), plan.n, args.k, args.tau); };
    LongVector<In> vector(args, plan, team, own);
    int route = team.decide([&] {
      begin();
      return own.begin_sample(double(sample.n));
    });
    if (route != kSweeps) route = vector.bracket(route, sample, apart);

    auto start_of = [&](auto* data, const Strides& strides) {
      return data + own.index.outer * strides.outer + own.index.inner * strides.inner;
    };
    const In* const x = start_of(static_cast<const In*>(args.x), args.x_strides);
    In* const y = args.y ? start_of(static_cast<In*>(args.y), args.y_strides) : nullptr;
    Lists<In> lists(plan, team, kept_at, own.bracket, route == kOpen);
    if (route == kBetween) lists.take(x);
    if (route == kOpen) lists.take_open(x, y);
    if (route != kSweeps) route = vector.search(route, lists);

    using Whole = Tile<In, true, 1, false>;
    const Whole tile(plan, team, true, 0);
    const Operand<const In> from(static_cast<const In*>(args.x), args.x_strides, args.shape, plan, own.index,
                                 tile.begin());
    const Entries<In, Whole> entries{tile, from, -kInfinity<T>};
    if (route == kSweeps) {
      team.decide_next([&] {
        begin();
        return 0;
      });
      Solver<In, Whole, Entries<In, Whole>, LongState<T>>(team, tile, own, &own, entries).solve();
    }
    if (team.rank() == 0 && team.decides()) {
      args.state.p[own.index.vector] = own.search.t.p;
      args.state.d[own.index.vector] = own.search.t.d;
    }
    if (y && route == kOpen && own.projector.regular) {
      lists.write(y, own.projector);
    } else if (y) {
      const Operand<In> to(static_cast<In*>(args.y), args.y_strides, args.shape, plan, own.index, tile.begin());
      write_projection(tile, entries, own.projector, to);
    }
    block_barrier();
  }
  team.leave();
}

}  // namespace

int long_state_bytes(DType dtype) {
  return int(dtype == DType::kFloat64 ? sizeof(LongState<double>) : sizeof(LongState<float>));
}

void long_threshold(const ThresholdArgs& args, const Plan& plan, void* workspace, void* stream) {
  const Plan sample = Planner::sample_of(plan);
  Strides apart = args.x_strides;
  apart.n2 = tuning::kSampled;
  for_storage_type(args.dtype, [&](auto storage) {
    launch(plan, stream, "threshold", project_long<typename decltype(storage)::type>, args, plan, sample, apart,
           prepare_workspace(plan, workspace, stream));
  });
}

}  // namespace cuda
}  // namespace hypersimplex
