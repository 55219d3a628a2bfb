// A row of adjacent entries, n >= kGroup of them, vector by vector and in place: the vectors of the last group reach
// back over entries that came before.
#pragma once

#include "cpu/projection/panel.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

template <class T>
class RowWalk {
 public:
  explicit RowWalk(int64_t n) : n_(n), full_(n / kGroup * kGroup) {
    T lanes[kGroup];
    for (int l = 0; l < kGroup; ++l) lanes[l] = T(l);
    for (int i = 0; i < kVectors<T>; ++i)
      fresh_[i] = greater(load_vector(lanes + i * kVectorLanes<T>), Vector<T>{} + T(kGroup - 1 - (n - full_)));
  }

  // Calls body(i, j, fresh) for the vectors at j, the i-th of their group, where fresh(m) is the mask m without entries
  // that came before; and end_run() after every kRun groups and at the end.
  template <class Body, class EndRun>
  void for_each(const Body& body, const EndRun& end_run) const {
    for (int64_t j = 0; j < full_;) {
      for (const int64_t end = smaller(j + kRun * kGroup, full_); j < end; j += kGroup)
        for (int i = 0; i < kVectors<T>; ++i) body(i, j + i * kVectorLanes<T>, [](auto m) { return m; });
      end_run();
    }
    if (full_ == n_) return;
    for (int i = 0; i < kVectors<T>; ++i)
      body(i, n_ - kGroup + i * kVectorLanes<T>, [&](auto m) { return Mask<T>(m & fresh_[i]); });
    end_run();
  }

 private:
  const int64_t n_, full_;      // entries of a row, and in groups of their own
  Mask<T> fresh_[kVectors<T>];  // the lanes of the last group that no other has
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
