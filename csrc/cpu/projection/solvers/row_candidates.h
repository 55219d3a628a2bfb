// Rows of small mass, kGroup of them at once: only the entries near a row's top can be active or one. A row is cut into
// kRowMaxima lanes; the lanes' maxima are some of its entries, so the threshold that gives them the mass k lies at or
// below the row's own. One sweep collects the entries above it, and where they have more than mass k, the threshold is
// theirs.
#pragma once

#include "cpu/projection/solvers/short_vectors.h"
#include "cpu/simd/transpose.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

template <class T>
class RowCandidates {
 public:
  // Row r of `live` begins at x[r]. Sets p, d of the rows that are solved.
  void solve(const T* const* x, int64_t n, int live, const double* mass, const double* tau, double* p, double* d,
             bool* solved) {
    int searched = 0;
    for (int r = 0; r < kGroup; ++r) {
      const bool wanted = r < live && wants_row_candidates(mass[r], n) && regular<T>(0, 0, tau[r]);
      tops_[r] = wanted ? kSearched : kLeft;
      mass_[r] = tops_[r] == kSearched ? mass[r] : 0;
      tau_[r] = tops_[r] == kSearched ? tau[r] : 1;
      searched += tops_[r] == kSearched;
      solved[r] = false;
    }
    if (searched == 0) return;
    cpu::note(cpu::Solver::kRowCandidates);
    for (int r = 0; r < live; ++r) sweep_maxima(x[r], n, lists_ + r * kRowMaxima);
    find_floors(solved);
    int64_t length = 1;
    for (int r = 0; r < kGroup; ++r) {
      if (!solved[r]) tops_[r] = kLeft;
      if (tops_[r] != kLeft) tops_[r] = collect(x[r], n, floor_[r], lists_ + r * kList);
      if (tops_[r] != kLeft && !enough(r)) tops_[r] = kLeft;
      if (tops_[r] > length) length = tops_[r];
      wanted_[r] = tops_[r] != kLeft;
    }
    for (int r = 0; r < kGroup; ++r)
      for (int64_t i = wanted_[r] ? tops_[r] : 0; i < length; ++i) lists_[r * kList + i] = floor_[r];
    rows_to_lanes(lists_, kList, length, lanes_, kGroup);
    search_.resume(lanes_, kGroup, length, floor_, top_, wanted_, tau_, p_, d_, solved);
    for (int r = 0; r < live; ++r) {
      if (!solved[r]) continue;
      p[r] = p_[r];
      d[r] = d_[r];
    }
  }

 private:
  static constexpr int kList = kMostRowCandidates + kRowMaxima + kGroup;
  static constexpr int64_t kLeft = -1, kSearched = 0;

  static void sweep_maxima(const T* x, int64_t n, T* maxima) {
    T most[kRowMaxima];
    for (int l = 0; l < kRowMaxima; ++l) most[l] = x[l];
    // The last few entries are left out: the floor may come from any entries of the row.
    for (int64_t j = kRowMaxima; j + kRowMaxima <= n; j += kRowMaxima) {
#pragma omp simd
      for (int l = 0; l < kRowMaxima; ++l) most[l] = x[j + l] > most[l] ? x[j + l] : most[l];
    }
    memcpy(maxima, most, sizeof most);
  }

  // How many entries lie above the floor; kLeft where they are too many, or the floor is no number.
  static int64_t collect(const T* x, int64_t n, T floor, T* list) {
    if (!is_finite(floor)) return kLeft;
    const Vector<T> edge = Vector<T>{} + floor;
    int64_t count = 0, j = 0;
    auto take = [&](const T* from) {
      const Vector<T> v = load_vector(from);
      count += compress_store(greater_or_nan(v, edge), v, list + count);
    };
    // Before each turn the list has the `count` entries above the floor in front of j, at most kMostRowCandidates, and
    // room for all that a turn may add.
    for (; j + kRowMaxima <= n; j += kRowMaxima) {
      for (int l = 0; l < kRowMaxima; l += kVectorLanes<T>) take(x + j + l);
      if (count > kMostRowCandidates) return kLeft;
    }
    for (; j + kVectorLanes<T> <= n; j += kVectorLanes<T>) take(x + j);
    for (; j < n; ++j) {
      list[count] = x[j];
      count += !(x[j] <= floor);
    }
    return count > kMostRowCandidates ? kLeft : count;
  }

  // A little below the thresholds of the maxima, or where these lie in a gap below the next maximum: at the floor the
  // mass is to exceed k.
  void find_floors(bool* solved) {
    rows_to_lanes(lists_, kRowMaxima, kRowMaxima, lanes_, kGroup);
    for (int r = 0; r < kGroup; ++r) {
      const bool known = r > 0 && mass_[r] == mass_[r - 1];
      quantile_[r] = known ? quantile_[r - 1] : normal_quantile(1 - mass_[r] / kRowMaxima);
    }
    search_.solve(lanes_, kGroup, kRowMaxima, mass_, tau_, quantile_, p_, d_, solved);
    for (int r = 0; r < kGroup; ++r) {
      const T* maxima = lists_ + r * kRowMaxima;
      T top = T(p_[r] + d_[r]), next = -T(HUGE_VAL);
      if (search_.in_gap(r)) {
        for (int l = 0; l < kRowMaxima; ++l) next = maxima[l] <= top && maxima[l] > next ? maxima[l] : next;
        top = from_ordered<T>(to_ordered(next) - 1);
      }
      floor_[r] = T(top - tau_[r] / 16);
    }
  }

  // Whether the entries above the floor are finite and have more than mass k at it, and so the others none at the
  // threshold. Leaves the greatest of them.
  bool enough(int r) {
    T* list = lists_ + r * kList;
    T most = floor_[r], sum[kGroup] = {}, special[kGroup] = {}, high[kGroup];
    const T edge = floor_[r], rate = T(1 / tau_[r]);
    for (int l = 0; l < kGroup; ++l) {
      list[tops_[r] + l] = edge;
      high[l] = edge;
    }
    for (int64_t i = 0; i < tops_[r]; i += kGroup) {
#pragma omp simd
      for (int l = 0; l < kGroup; ++l) {
        const T v = list[i + l];
        sum[l] += clip01((v - edge) * rate);
        special[l] += v - v;
        high[l] = v > high[l] ? v : high[l];
      }
    }
    double total = 0;
    bool finite = true;
    for (int l = 0; l < kGroup; ++l) {
      total += sum[l];
      finite &= special[l] == 0;
      most = high[l] > most ? high[l] : most;
    }
    top_[r] = most;
    return finite && total > mass_[r] * (1 + 1e-4);
  }

  alignas(64) T lists_[kGroup * kList];
  alignas(64) T lanes_[kMostRowCandidates * kGroup], floor_[kGroup], top_[kGroup];
  alignas(64) double mass_[kGroup], tau_[kGroup], quantile_[kGroup], p_[kGroup], d_[kGroup];
  alignas(64) Count<T> wanted_[kGroup];
  int64_t tops_[kGroup];  // entries in the list, kSearched before there is one
  ShortSearch<T, 1> search_;
};

// y of one row of at least kGroup entries, vector by vector and so that all but the ends lie in cache lines of their
// own.
template <class T>
static void project_row(const T* x, int64_t n, double p, double d, double tau, T* y) {
  const Vector<T> head = Vector<T>{} + T(p), tail = Vector<T>{} + T(d), rate = Vector<T>{} + T(1 / tau);
  auto write = [&](int64_t j) {
    for (int l = 0; l < kGroup; l += kVectorLanes<T>)
      store_vector<T>(clipped01(((load_vector(x + j + l) - head) - tail) * rate), y + j + l);
  };
  write(0);
  // What lies in cache lines of its own is written in the loop; both ends, which may overlap it, hold the same there.
  const int64_t skipped = int64_t(-(reinterpret_cast<uintptr_t>(y) / sizeof(T))) & (kGroup - 1);
  for (int64_t j = skipped; j + kGroup <= n; j += kGroup) write(j);
  write(n - kGroup);
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
