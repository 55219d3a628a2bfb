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

  __device__ void start() { search.begin(mass, tau, n, count, infinite, nan, T(low), T(high), mean, variance); }
  __device__ bool searching() const { return search.status == SearchStatus::kSearching; }
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

// Fills a tile and finds the thresholds of its vectors, for whose states begin() has been called. `Source` knows the
// entries: source.first(), and source.read(i, x) for those of an access, at first and again where the tile is not
// resident.
template <class In, class Tile, class Source>
class Solver {
 public:
  using T = Compute<In>;
  // count: finite ones, or #{x > t} and #{x >= t + tau}, or +inf and nan; sum: of x and of x^2 about origin, or over A
  using Own = Sums<2, 2, true>;
  using All = Totals<2, 2, true>;

  __device__ Solver(Team& team, const Tile& tile, VectorState<T>& own, const Source& source)
      : team_(team), tile_(tile), own_(own), source_(source) {}

  // Leaves the states of the team's vectors complete, for all threads of the block.
  __device__ __forceinline__ void solve() {
    int phase = kMoments;
    // Before each turn all threads of the team have the same phases. Each turn serves one of them for all vectors; it
    // ends, as step_to_end() ends every search.
    while (phase != kDone) {
      const int now = phase & -phase;
      Own own;
      if (now == kMoments)
        add_moments(own);
      else if (now == kSpecial)
        add_special(own);
      else if (now == kSearching)
        add_counts(own);
      else
        add_gap(own);
      const All total = team_.reduce(own, now != kSearching);
      phase = team_.decide([&] {
        return now == kMoments     ? take_moments(total)
               : now == kSpecial   ? take_special(total)
               : now == kSearching ? take_counts(total)
                                   : take_gap(total, now);
      });
    }
  }

  // ---- single sweeps ----

  __device__ T origin() const {
    T first = source_.first();
    return is_finite(first) ? first : T(0);
  }

  __device__ void add_moments(Own& own) {
    const T origin = this->origin();
    unsigned finite = 0;
    T sum = 0, squares = 0, low = kInfinity<T>, high = -kInfinity<T>;
    tile_.fill(
        source_,
        [&](int, const auto& x, auto&, int) {
          for (T v : x) {
            if (!is_finite(v)) continue;
            T e = v - origin;
            ++finite;
            sum += e;
            squares += e * e;
            low = v < low ? v : low;
            high = v > high ? v : high;
          }
        },
        [&] {
          own.sum[0] += double(sum);
          own.sum[1] += double(squares);
          sum = squares = 0;
        });
    own.count[0] = finite;
    own.low = low;
    own.high = high;
  }

  __device__ void add_special(Own& own) {
    tile_.sweep_seldom(source_, [&](int, const auto& x) {
      for (T v : x) {
        own.count[0] += v == kInfinity<T>;
        own.count[1] += v != v;
      }
    });
  }

  __device__ void add_counts(Own& own) {
    const Projector<T> projector = own_.projector;
    T sum = 0;
    tile_.sweep(
        source_,
        [&](int, const auto& x) {
          T part = 0;
          for (T v : x) {
            bool above = v > projector.floor, one = v >= projector.ceiling;
            own.count[0] += above;
            own.count[1] += one;
            if (above && !one) part += projector.beyond(v);
          }
          sum += part;
        },
        [&] {
          own.sum[0] += double(sum);
          sum = 0;
        });
  }

  // No entry is active: the least one and the greatest zero.
  __device__ void add_gap(Own& own) {
    const T edge = own_.gap_edge();
    T zero = -kInfinity<T>, one = kInfinity<T>;
    tile_.sweep_seldom(source_, [&](int, const auto& x) {
      for (T v : x) take_side(v, edge, zero, one);
    });
    own.low = one;
    own.high = zero;
  }

 private:
  // What a vector needs next, a bit each. A tile's phases are those of all its vectors, or-ed; the lowest bit is served
  // first, so that no vector is swept at a threshold that a jump is about to move.
  enum Phase : int { kDone = 0, kMoments = 1, kSpecial = 2, kJump = 4, kSearching = 8, kGap = 16 };

  __device__ int take_moments(const All& total) {
    own_.count = total.count(0);
    double shift = total.sum(0) / own_.count, variance = total.sum(1) / own_.count - shift * shift;
    own_.mean = double(origin()) + shift;
    own_.variance = variance > 0 ? variance : 0;
    own_.low = total.low();
    own_.high = total.high();
    own_.infinite = own_.nan = 0;
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
  __device__ __attribute__((noinline)) static int start(VectorState<T>& state) {
    state.start();
    return settle(state);
  }
  __device__ __attribute__((noinline)) static int step(VectorState<T>& state, double g, double h, double S) {
    if (state.searching()) state.search.step_to_end({g, h, S});
    return settle(state);
  }
  __device__ __attribute__((noinline)) static int take_gap(VectorState<T>& state, T zero, T one, bool last) {
    if (state.search.flat != 0 || last) state.take_gap(zero, one);
    return settle(state);
  }
  __device__ static int settle(VectorState<T>& state) {
    if (state.searching()) {
      if (state.search.flat != 0) return kJump;  // the projector stays where no entry was active
      state.projector.aim(state.search.t, state.tau);
      return kSearching;
    }
    state.projector.set(state.search.t, state.tau);
    return state.in_gap() ? kGap : kDone;
  }

  Team& team_;
  const Tile& tile_;
  VectorState<T>& own_;
  const Source& source_;
};

}  // namespace cuda
}  // namespace hypersimplex
