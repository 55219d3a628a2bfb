// Long vectors: a sample tells between which thresholds the root lies, one pass lists the few entries that these leave
// undecided.
#pragma once

#include <memory>
#include <utility>

#include "cpu/projection/solvers/bracket.h"
#include "cpu/projection/solvers/general.h"
#include "cpu/simd/aligned.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// What a bracket makes of a vector's entries: sums over those that are decided, a list of the others.
template <class T>
class Candidates {
 public:
  Decided decided;

  // Takes in a vector, of which entries(step, steps, buffer) gives a block and visit(step, steps) is told each one;
  // false where more than `most` entries are undecided. `expected` of them find room at once.
  template <class Entries, class Visit>
  bool take(const Plan& plan, int threads, const Bracket<T>& bracket, int64_t expected, int64_t most,
            const Entries& entries, const Visit& visit) {
    const std::unique_ptr<Candidates[]> parts(new Candidates[threads]);
    const std::unique_ptr<Decided[]> sums(new Decided[plan.chunks]);  // added in order, whoever computed them
    walk_parts(plan.chunks, threads, Walk::kForwards, [&](int64_t chunk, int64_t part) {
      Candidates& out = parts[part];
      if (out.count_ > most) return;
      if (out.capacity_ == 0) out.reserve(expected / threads + kBlock, bracket.open());
      out.decided = {};
      const ScratchArray<T> buffer(kBlock);
      for_each_block(plan, chunk, [&](int64_t step, int64_t steps) {
        out.add(entries(step, steps, buffer).at, step * plan.width, steps * plan.width, bracket);
        visit(step, steps);
      });
      sums[chunk] = out.decided;
    });
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) decided.add(sums[chunk]);
    list_ = std::move(parts[0].list_);
    places_ = std::move(parts[0].places_);
    count_ = parts[0].count_;
    capacity_ = parts[0].capacity_;
    for (int part = 1; part < threads; ++part) append_list(parts[part]);
    return count_ <= most;
  }

  // x_first, ... into sums and list. For an open bracket the list holds every NaN too, and the places.
  void add(const T* x, int64_t first, int64_t entries, const Bracket<T>& bracket) {
    if (bracket.open())
      list_tops(x, first, entries, bracket.floor);
    else
      sort_out(x, entries, bracket);
  }

  int64_t count() const { return count_; }
  // Calls body(j, x_j) for every top.
  template <class Body>
  void for_each(const Body& body) const {
    for (int64_t i = 0; i < count_; ++i) body(places_[i], list_[i]);
  }

  // As a vector of its own, never empty and padded with -inf.
  int64_t length() const { return count_ > 0 ? count_ : 1; }
  void pad() {
    reserve(kWide, false);
    for (int l = 0; l < kWide; ++l) list_[count_ + l] = -T(HUGE_VAL);
  }
  View<const T> operator()(int64_t step, int64_t, T*) const { return {list_ + step * kWide, kWide}; }

 private:
  void append_list(const Candidates& next) {
    if (next.count_ == 0) return;
    reserve(next.count_, next.places_ != nullptr);
    memcpy(list_ + count_, next.list_, next.count_ * sizeof(T));
    if (places_) memcpy(places_ + count_, next.places_, next.count_ * sizeof(int64_t));
    count_ += next.count_;
  }

  void sort_out(const T* x, int64_t entries, const Bracket<T>& bracket) {
    using V = Vector<T>;
    reserve(entries, false);
    const V floor = V{} + bracket.floor, inner_floor = V{} + bracket.inner_floor,
            inner_ceiling = V{} + bracket.inner_ceiling, p = V{} + T(bracket.lo.p),
            below_one = V{} + from_ordered<T>(to_ordered(bracket.ceiling) - 1);
    V sums[kVectors<T>] = {}, part[kVectors<T>] = {};
    Counts<T> are_one[kVectors<T>] = {}, are_active[kVectors<T>] = {};
    T* to = list_ + count_;
    // Before each turn the sums and the list have the entries in front of j, and `part` is zero: it adds up in T, which
    // keeps enough digits for a run.
    for (int64_t j = 0; j < entries;) {
      for (const int64_t end = smaller(j + kRun * kGroup, entries); j < end; j += kGroup) {
        for (int i = 0; i < kVectors<T>; ++i) {
          const V v = load_vector(x + j + i * kVectorLanes<T>);
          const auto is_active = both_greater(greater(v, inner_floor), inner_ceiling, v),
                     is_one = greater(v, below_one);
          are_active[i] = add_one_where(is_active, are_active[i]);
          are_one[i] = add_one_where(is_one, are_one[i]);
          part[i] = add_where(is_active, part[i], v - p);
          to += compress_store(greater_or_nan(v, floor) & ~(is_active | is_one), v, to);
        }
      }
      join_vectors(part, sums);
    }
    count_ = to - list_;
    total(are_one, decided.ones);
    total(are_active, decided.active);
    total(sums, decided.sum);
  }

  void list_tops(const T* x, int64_t first, int64_t entries, T floor) {
    struct Hit {
      int64_t at;
      unsigned lanes;
    } hits[kBlock / kGroup + 1];
    alignas(64) T floors[kGroup];
    for (int l = 0; l < kGroup; ++l) floors[l] = floor;
    // Without branches: hits[found] is overwritten until it is one.
    int found = 0;
    for (int64_t j = 0; j < entries; j += kGroup) {
      const unsigned lanes = bits_greater_or_nan<kGroup>(x + j, floors);
      hits[found] = {j, lanes};
      found += lanes != 0;
    }
    if (found == 0) return;
    reserve(found * kGroup, true);
    for (int i = 0; i < found; ++i) {
      for (unsigned lanes = hits[i].lanes; lanes != 0; lanes &= lanes - 1) {
        const int64_t j = hits[i].at + __builtin_ctz(lanes);
        list_[count_] = x[j];
        places_[count_++] = first + j;
      }
    }
  }

  template <class V>
  static void total(const V& lanes, double& sum) {
    alignas(64) double sums[kGroup] = {};
    flush_vectors(lanes, sums);
    for (int l = 0; l < kGroup; ++l) sum += sums[l];
  }

  // Room for `more` entries, and for the vector that compress_store() writes behind them.
  void reserve(int64_t more, bool with_places) {
    const int64_t least = count_ + more + kVectorLanes<T>;
    if (least > capacity_) {
      capacity_ = least > 2 * capacity_ ? least : 2 * capacity_;
      grow(list_);
      if (places_) grow(places_);
    }
    if (with_places && !places_) grow(places_);
  }
  template <class Item>
  void grow(Aligned<Item>& items) {
    Aligned<Item> more(capacity_);
    if (items) memcpy(more, items, count_ * sizeof(Item));
    items = std::move(more);
  }

  Aligned<T> list_;
  Aligned<int64_t> places_;
  int64_t count_ = 0, capacity_ = 0;
};

// n^(2/3) entries in groups from all over a long vector.
template <class T>
class Sample {
 public:
  template <class Entries>
  Sample(const Plan& plan, const Entries& entries) : size_(size_of(plan.n)), list_(size_) {
    constexpr int kTogether = 16;  // groups that are waited for together
    const ScratchArray<T> buffer(kTogether * kWide);
    const T *group[kTogether], *const head = entries(0, 1, buffer).at;
    const bool in_place = head != buffer;  // as all blocks are
    const int64_t groups = size_ / kGroup;
    for (int64_t first = 0; first < groups; first += kTogether) {
      const int together = int(smaller(kTogether, groups - first));
      for (int i = 0; i < together; ++i) {
        const int64_t step = int64_t(double(first + i) / double(groups) * double(plan.full_steps));
        group[i] = in_place ? head + step * kWide : entries(step, 1, buffer + i * kWide).at;
        group[i] += i % (kWide / kGroup) * kGroup;
        __builtin_prefetch(group[i]);
      }
      for (int i = 0; i < together; ++i) memcpy(list_ + (first + i) * kGroup, group[i], kGroup * sizeof(T));
    }
  }

  static int64_t size_of(int64_t n) { return int64_t(cbrt(double(n) * double(n))) / kWide * kWide; }
  int64_t size() const { return size_; }
  // How many a bracket leaves undecided.
  int64_t undecided(const Bracket<T>& bracket) const {
    Candidates<T> trial;
    for (int64_t j = 0; j < size_; j += kBlock) trial.add(list_ + j, j, smaller(kBlock, size_ - j), bracket);
    return trial.count();
  }
  View<const T> operator()(int64_t step, int64_t, T*) const { return {list_ + step * kWide, kWide}; }

 private:
  const int64_t size_;
  const Aligned<T> list_;
};

template <class T, class Entries>
class PanelSolver;  // solve_panel.h: sample and candidates are panels too

// Solves one vector from a sample: its root for a little more than the mass and for a little less bracket the vector's.
// One pass then sorts the entries into those that the bracket decides, of which sums are kept, and the candidates,
// among which the search goes on. Where the mass is small there is no upper end: whatever is not zero is a candidate.
//
//     sample      n^(2/3) entries      ->  lo, hi
//     pass        x <= lo              ->  zero
//                 between the inner    ->  active: counted and summed
//                 x >= hi + tau        ->  one: counted
//                 else                 ->  candidates, at most n / 8
//     general     candidates and sums  ->  p, d
template <class T>
class LongVector {
 public:
  // Of the vector of a panel, of which entries(step, steps, buffer) gives a block; false where the sample does not
  // help. Where tops() are found, visit(step, steps) has seen every block.
  template <class Entries, class Visit>
  bool solve(const Panel& panel, int threads, const Entries& entries, double mass, double tau, const Visit& visit,
             double* p, double* d) {
    const Plan& plan = panel.plan;
    if (!wants_long_vectors(plan, true) || !(mass > 0 && mass < double(plan.n) && regular<T>(0, 0, tau))) return false;
    const double size = double(Sample<T>::size_of(plan.n)), share = size * (mass / double(plan.n));
    const double slack = kDeviations * sqrt(share * (1 - share / size)) + 3;
    const bool few = share <= slack;
    if (!wants_long_vectors(plan, few) || share + slack >= size) return false;
    tried_ = true;
    const Sample<T> sample(plan, entries);
    const Pair lo = root(panel, sample, share + slack, tau);
    const Pair hi = few ? Pair{lo.p, HUGE_VAL} : root(panel, sample, share - slack, tau);
    if (!(is_finite(lo.p) && difference(hi, lo) > 0)) return false;

    const Bracket<T> bracket(lo, hi, tau);
    const int64_t undecided = sample.undecided(bracket);
    if (kMostUndecided * undecided > sample.size()) return false;
    auto told = [&](int64_t step, int64_t steps) {
      if (few) visit(step, steps);
    };
    const int64_t expected = int64_t(1.25 / size * double(undecided) * double(plan.n));
    if (!candidates_.take(plan, threads, bracket, expected, plan.n / kMostUndecided, entries, told)) return false;
    candidates_.pad();
    const Plan shorter = plan.with_length(candidates_.length());
    const Panel rest(shorter, panel.index);
    const Scratch<PanelSolver<T, Candidates<T>>> solver(rest, 1, candidates_);
    if (!few) {
      const int64_t count = candidates_.count();
      bool solved = false;
      return solver->general().solve_between(&bracket, &candidates_.decided, &count, {nullptr, mass}, {nullptr, tau}, p,
                                             d, &solved);
    }
    tops_ = solver->general().mass_above(lo, tau) > mass;
    if (tops_) solver->solve({nullptr, mass}, {nullptr, tau}, p, d);
    return tops_;
  }
  bool tried() const { return tried_; }

  // All entries that are not zero and some more, where they are few; or null.
  const Candidates<T>* tops() const { return tops_ ? &candidates_ : nullptr; }

 private:
  // The threshold at which the sample has this mass.
  static Pair root(const Panel& panel, const Sample<T>& sample, double mass, double tau) {
    const Plan plan = panel.plan.with_length(sample.size());
    const Panel shorter(plan, panel.index);
    Pair t;
    Scratch<PanelSolver<T, Sample<T>>>(shorter, 1, sample)->solve({nullptr, mass}, {nullptr, tau}, &t.p, &t.d);
    return t;
  }

  Candidates<T> candidates_;
  bool tried_ = false, tops_ = false;
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
