// Finds the thresholds of a tile's vectors: one pass for the moments, from which the first guess comes, then a sweep
// per step of the search in newton.h. One thread per vector takes the step from a sweep's totals, in double.
#pragma once

#include "projector.cuh"
#include "tile.cuh"

namespace hypersimplex {
namespace cuda {

// What is known of a vector while its threshold is sought. It lies in shared memory, or in registers where the vector
// does.
template <class T>
struct alignas(16) VectorState {
  VectorIndex index;
  double n, mass, tau;                      // n: its entries; 0 where there is no vector
  double count, mean, variance, low, high;  // of the finite entries
  double infinite, nan;                     // numbers of entries
  Search<T> search;                         // search.t is the result
  Projector<T> projector;

  __device__ void begin(const VectorIndex& which, int64_t entries, const PerVector& k, const PerVector& temperature) {
    index = which;
    n = index.live ? double(entries) : 0;
    mass = index.live ? at(k, index.vector) : 0;
    tau = index.live ? at(temperature, index.vector) : 1;
  }

  __device__ void start() {
    search.template begin<T>(mass, tau, n, count, infinite, nan, T(low), T(high), mean, variance);
  }
  __device__ bool searching() const { return search.status == SearchStatus::kSearching; }
  // Whether the caller's own sweep may find out if t is the root, in place of one more of the search; and does.
  static constexpr bool kGuesses = false;
  __device__ static constexpr bool guesses() { return false; }
  __device__ bool in_gap() const { return is_gap(search.status); }

  // The edge between zeros and ones, where no entry is active.
  __device__ T gap_edge() const {
    T ceiling = projector.ceiling;
    return search.status == SearchStatus::kGapBelow ? from_ordered<T>(to_ordered(ceiling) - 1) : projector.floor;
  }
  // From the greatest zero and the least one: a search goes on beyond the gap, or ends in its middle.
  __device__ void take_gap(T zero, T one) {
    if (searching()) return search.jump(zero, one);
    if (in_gap()) search.t = gap_middle<T>(zero, one, tau);
    search.status = SearchStatus::kFound;
  }
};

template <class T>
__device__ __forceinline__ void take_side(T v, T edge, T& zero, T& one) {
  if (v > edge)
    one = v < one ? v : one;
  else
    zero = v > zero ? v : zero;
}

// The moments of a vector's entries about an origin, and their extremes.
template <class T>
struct Moments {
  T origin, sum, squares, low, high;
  unsigned count;

  __device__ __forceinline__ void begin(T at) {
    origin = at;
    sum = squares = 0;
    low = kInfinity<T>;
    high = -kInfinity<T>;
    count = 0;
  }
  __device__ __forceinline__ void add(T x) {
    const T e = x - origin;
    ++count;
    sum += e;
    squares += e * e;
    low = lesser(low, x);
    high = greater(high, x);
  }
  template <class Sums>
  __device__ __forceinline__ void flush(Sums& sums) {
    sums.sum[0] += double(sum);
    sums.sum[1] += double(squares);
    sum = squares = 0;
  }
  template <class Sums>
  __device__ __forceinline__ void finish(Sums& sums) const {
    sums.count[0] = count;
    sums.low = low;
    sums.high = high;
  }
};

// Fills a tile and finds the thresholds of its vectors, for whose states begin() has been called. `Source` knows the
// entries: source.first(index) of a vector, and source.read(i, step, x) for those of an access, at first and again
// where the tile is not resident. A thread sweeps over the entries of kAbreast vectors and, in warp 0, decides for one.
template <class In, class Tile, class Source, class State = VectorState<Compute<In>>>
class Solver {
 public:
  using T = Compute<In>;
  static constexpr int kAbreast = Tile::kAbreast;
  // count: entries, or finite ones, or #{x > t} and #{x >= t + tau}, or +inf and nan; sum: of x and of x^2 about
  // origin, or over A
  using Own = Sums<2, 2, true>[kAbreast];
  using All = Totals<2, 2, true>;

  // own: the state of the vector that the thread decides for; swept: of the vectors whose entries it sees
  __device__ Solver(Team& team, const Tile& tile, State& own, const State* swept, const Source& source)
      : team_(team), tile_(tile), own_(own), swept_(swept), source_(source) {}

  // What a vector needs next, a bit each. A tile's phases are those of all its vectors, or-ed; the lowest bit is served
  // first, so that no vector is swept at a threshold that a jump is about to move. The caller's own come last.
  enum Phase : int {
    kDone = 0,
    kMoments = 1,
    kCareful = 2,
    kSpecial = 4,
    kJump = 8,
    kSearching = 16,
    kGap = 32,
    kGuess = 64,
    kCallers = 128
  };

  // Leaves the states of the team's vectors complete, for all threads of the block, but for those that guess. Where a
  // search has begun already, `phase` is what settle() says of it; kBegins: whether any has not.
  template <bool kBegins = true>
  __device__ __forceinline__ void solve(int phase = kMoments) {
    // Before each turn all threads of the team have the same phases. Each turn serves one of them for all vectors; it
    // ends, as step_to_end() ends every search.
    while ((phase & (kGuess - 1)) != kDone) {
      const int now = phase & -phase;
      Own own;
      if (kBegins && now == kMoments)
        add_moments<false>(own);
      else if (kBegins && now == kCareful)
        add_moments<true>(own);
      else if (kBegins && now == kSpecial)
        add_special(own);
      else if (now == kSearching)
        add_counts(own);
      else
        add_gap(own);
      const All total = team_.reduce(own, now != kSearching);
      phase = team_.decide([&] {
        return kBegins && now == kMoments   ? take_moments(total)
               : kBegins && now == kCareful ? take_careful(total)
               : kBegins && now == kSpecial ? take_special(total)
               : now == kSearching          ? take_counts(total)
                                            : take_gap(total, now);
      });
    }
  }

  // The next phase of a state: whether its search goes on.
  __device__ static int settle(State& state) {
    const bool guesses = state.guesses();
    if (state.searching() && !guesses) {
      if (state.search.flat != 0) return kJump;  // the projector stays where no entry was active
      state.projector.aim(state.search.t, state.tau);
      return kSearching;
    }
    state.projector.set(state.search.t, state.tau);
    return guesses ? kGuess : state.in_gap() ? kGap : kDone;
  }

  // What follows from the counts of the caller's sweep at a guess.
  __device__ __attribute__((noinline)) static int take_guess(State& state, double g, double h) {
    state.guessed = 1;
    state.search.confirmed(g, h);
    return settle(state);
  }

  // ---- single sweeps ----

  __device__ T origin(const VectorIndex& index) const {
    T first = source_.first(index);
    return is_finite(first) ? first : T(0);
  }

  // Of all entries as if they were finite, which the sum tells afterwards; or, kCarefully, of those that are. kAgain:
  // whether the tile has been filled.
  template <bool kCarefully, bool kAgain = kCarefully>
  __device__ void add_moments(Own& own) {
    Moments<T> moments[kAbreast];
#pragma unroll
    for (int v = 0; v < kAbreast; ++v) moments[v].begin(origin(swept_[v].index));
    auto add = [&](int i, const auto& x, const auto&...) {
      int v = 0;
      for (T entry : x) {
        if (kCarefully ? is_finite(entry) : !tile_.padded(i, x)) moments[v].add(entry);
        v += kAbreast > 1;
      }
    };
    auto flush = [&] {
#pragma unroll
      for (int v = 0; v < kAbreast; ++v) moments[v].flush(own[v]);
    };
    if constexpr (kAgain) {
      tile_.sweep_seldom(source_, [&](int i, const auto& x) {
        add(i, x);
        flush();
      });
    } else {
      tile_.fill(source_, add, flush);
    }
#pragma unroll
    for (int v = 0; v < kAbreast; ++v) moments[v].finish(own[v]);
  }

  __device__ void add_special(Own& own) {
    tile_.sweep_seldom(source_, [&](int, const auto& x) {
      int v = 0;
      for (T entry : x) {
        own[v].count[0] += entry == kInfinity<T>;
        own[v].count[1] += entry != entry;
        v += kAbreast > 1;
      }
    });
  }

  __device__ void add_counts(Own& own) {
    Counter<T> counters[kAbreast];
#pragma unroll
    for (int v = 0; v < kAbreast; ++v) counters[v].aim(swept_[v].projector);
    tile_.sweep(
        source_,
        [&](int, const auto& x) {
          if constexpr (kAbreast > 1) {
            int v = 0;
            for (T entry : x) counters[v++].add(entry);
          } else {
            counters[0].add_all(x);
          }
        },
        [&] {
#pragma unroll
          for (int v = 0; v < kAbreast; ++v) counters[v].flush(own[v]);
        });
    if constexpr (Tile::kPartial) tile_.add_decided(swept_->projector, own[0]);
  }

  // No entry is active: the least one and the greatest zero.
  __device__ void add_gap(Own& own) {
    T zero[kAbreast], one[kAbreast];
#pragma unroll
    for (int v = 0; v < kAbreast; ++v) {
      zero[v] = -kInfinity<T>;
      one[v] = kInfinity<T>;
    }
    tile_.sweep_seldom(source_, [&](int, const auto& x) {
      int v = 0;
      for (T entry : x) {
        take_side(entry, swept_[v].gap_edge(), zero[v], one[v]);
        v += kAbreast > 1;
      }
    });
#pragma unroll
    for (int v = 0; v < kAbreast; ++v) {
      own[v].low = one[v];
      own[v].high = zero[v];
    }
  }

 private:
  __device__ int take_moments(const All& total) {
    own_.infinite = own_.nan = 0;
    const double sum = total.sum(0);
    if (sum - sum != 0) {
      own_.count = -1;
      return kCareful;
    }
    return take(total);
  }
  // Of the vectors whose moments are not known yet.
  __device__ int take_careful(const All& total) { return own_.count < 0 ? take(total) : settle(own_); }
  __device__ int take(const All& total) {
    own_.count = total.count(0);
    double shift = total.sum(0) / own_.count, variance = total.sum(1) / own_.count - shift * shift;
    own_.mean = double(origin(own_.index)) + shift;
    own_.variance = variance > 0 ? variance : 0;
    own_.low = total.low();
    own_.high = total.high();
    return own_.count < own_.n ? kSpecial : start(own_);
  }

  __device__ int take_special(const All& total) {
    own_.infinite = total.count(0);
    own_.nan = total.count(1);
    return start(own_);
  }

  __device__ int take_counts(const All& total) { return step(own_, total.count(0), total.count(1), total.sum(0)); }

  __device__ int take_gap(const All& total, int phase) {
    return take_gap(own_, T(total.high()), T(total.low()), phase == kGap);
  }

  // Not inlined, so that the numbers of the one thread that acts for a vector do not crowd out what all threads keep in
  // registers. The result is the vector's next phase.
  __device__ __attribute__((noinline)) static int start(State& state) {
    state.start();
    return settle(state);
  }
  __device__ __attribute__((noinline)) static int step(State& state, double g, double h, double S) {
    // Where vectors guess, counts alone confirm a root here too: none depends on how long those beside it search.
    if (state.searching() && !(State::kGuesses && state.search.confirmed(g, h))) state.search.step_to_end({g, h, S});
    return settle(state);
  }
  __device__ __attribute__((noinline)) static int take_gap(State& state, T zero, T one, bool last) {
    if (last ? state.in_gap() : state.search.flat != 0) state.take_gap(zero, one);
    return settle(state);
  }

  Team& team_;
  const Tile& tile_;
  State& own_;
  const State* const swept_;
  const Source& source_;
};

// Writes y of the entries of a tile whose vectors have been solved.
template <class In, class Tile, class Source>
__device__ __forceinline__ void write_projection(const Tile& tile, const Source& entries,
                                                 const Projector<Compute<In>>& found, const Operand<In>& y) {
  using T = Compute<In>;
  auto write = [&](int i, auto& v, auto project) {
    for (T& entry : v) entry = project(entry);
    tile.store(y, i, v);
  };
  if (found.regular) {
    const Projector<T> projector = found;
    tile.pass(entries, [&](int i, auto& v, auto&, int) { write(i, v, [&](T e) { return projector.y(e); }); }, [] {});
  } else {
    tile.each_singly([&](int i) {
      T v[1][1];
      entries.read(i, 0, v);
      write(i, v[0], [&](T e) { return T(found.irregular_y(e)); });
    });
  }
}

}  // namespace cuda
}  // namespace hypersimplex
