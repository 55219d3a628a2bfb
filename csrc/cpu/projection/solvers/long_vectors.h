// Long vectors. A sample's thresholds for a little more and a little less mass bracket the root: then the part in f of
// most entries is known before the root is, and one sweep adds these parts up and packs the few entries that are left
// into a list, on which the search goes on. Where the mass is small the list holds all of the vector that is not zero.
#pragma once

#include <memory>
#include <utility>

#include "cpu/projection/panel.h"
#include "cpu/simd/aligned.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// What an entry says of itself while the root lies between two thresholds: at or below `floor` it is zero, between the
// inner bounds it is active, at or above `ceiling` it is one; else it is undecided.
template <class T>
struct Bracket {
  Pair lo, hi;
  T floor, inner_floor, inner_ceiling, ceiling;

  Bracket(Pair lo, Pair hi, double tau)
      : lo(lo),
        hi(hi),
        floor(active_floor<T>(lo)),
        inner_floor(active_floor<T>(hi)),
        inner_ceiling(active_ceiling<T>(lo, tau)),
        ceiling(active_ceiling<T>(hi, tau)) {}
  bool open() const { return hi.d == HUGE_VAL; }  // no upper end: whatever is not zero is undecided
};

// Sums over the entries that a bracket decides.
struct Decided {
  double ones = 0, active = 0;  // how many are one, how many active
  double sum = 0;               // the active ones' sum of x - lo.p

  void add(const Decided& next) {
    ones += next.ones;
    active += next.active;
    sum += next.sum;
  }
};

// What a bracket makes of a vector's entries: sums over those that are decided, a list of the others.
template <class T>
class Undecided {
 public:
  Decided decided;

  // Takes in a vector, of which entries(step, steps, buffer) gives a block and visit(step, steps) is told each one;
  // false where more than `most` entries are undecided. `expected` of them find room at once.
  template <class Entries, class Visit>
  bool take(const Plan& plan, int threads, const Bracket<T>& bracket, int64_t expected, int64_t most,
            const Entries& entries, const Visit& visit) {
    const std::unique_ptr<Undecided[]> parts(new Undecided[threads]);
    const std::unique_ptr<Decided[]> sums(new Decided[plan.chunks]);  // added in order, whoever computed them
    walk_parts(plan.chunks, threads, Walk::kForwards, [&](int64_t chunk, int64_t part) {
      Undecided& out = parts[part];
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
  void append_list(const Undecided& next) {
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
    for (int64_t j = 0; j < entries;) {
      for (const int64_t end = smaller(j + kRun * kGroup, entries); j < end; j += kGroup) {
        for (int i = 0; i < kVectors<T>; ++i) {
          const V v = load_vector(x + j + i * kVectorLanes<T>);
          const auto is_active = both_greater(greater(v, inner_floor), inner_ceiling, v),
                     is_one = greater(v, below_one);
          are_active[i] = counted(is_active, are_active[i]);
          are_one[i] = counted(is_one, are_one[i]);
          part[i] = added(is_active, part[i], v - p);
          to += append(beyond(v, floor) & ~(is_active | is_one), v, to);
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
    int found = 0;
    for (int64_t j = 0; j < entries; j += kGroup) {
      const unsigned lanes = lanes_beyond<kGroup>(x + j, floors);
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

  // Room for `more` entries, and for the vector that append() writes behind them.
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
    Undecided<T> trial;
    for (int64_t j = 0; j < size_; j += kBlock) trial.add(list_ + j, j, smaller(kBlock, size_ - j), bracket);
    return trial.count();
  }
  View<const T> operator()(int64_t step, int64_t, T*) const { return {list_ + step * kWide, kWide}; }

 private:
  const int64_t size_;
  const Aligned<T> list_;
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
