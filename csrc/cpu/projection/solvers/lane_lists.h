// Some entries of each of a panel's columns, listed lane by lane, as vectors of their own.
#pragma once

#include "cpu/projection/panel.h"
#include "cpu/simd/aligned.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

template <class T>
class LaneLists {
 public:
  void reserve(int lanes, int width, int64_t room) {
    lanes_ = lanes;
    width_ = width;
    room_ = room;
    pitch_ = (room / kGroup | 1) * kGroup + kGroup;  // lists' ends never meet in one set of a cache
    list_ = Aligned<T>(size());
    for (int l = 0; l < lanes; ++l) count_[l] = 0;
  }
  bool reserved() const { return lanes_ > 0; }
  // Of an array that has something for every listed entry, and where in it a lane begins.
  int64_t size() const { return pitch_ * lanes_; }
  int64_t first(int lane) const { return lane * pitch_; }
  const T* at(int lane) const { return list_ + first(lane); }
  int64_t count(int lane) const { return count_[lane]; }

  // What does not find room is counted all the same.
  void add(int lane, T v) {
    if (count_[lane] < room_) list_[first(lane) + count_[lane]] = v;
    ++count_[lane];
  }
  void append(const LaneLists& next) {
    for (int l = 0; l < lanes_; ++l) {
      const int64_t more = next.count_[l];
      if (count_[l] + more <= room_) memcpy(list_ + first(l) + count_[l], next.at(l), more * sizeof(T));
      count_[l] += more;
    }
  }
  void drop(int lane) { count_[lane] = 0; }

  // Makes them vectors of one length, which it returns: padded with -inf; a list that did not find room is empty.
  int64_t pad() {
    int64_t length = 1;
    for (int l = 0; l < lanes_; ++l) {
      if (count_[l] > room_) drop(l);
      length = larger(length, count_[l]);
    }
    for (int l = 0; l < lanes_; ++l)
      for (int64_t i = count_[l]; i < length; ++i) list_[first(l) + i] = -T(HUGE_VAL);
    return length;
  }
  // A block of them side by side.
  View<const T> operator()(int64_t step, int64_t steps, T* buffer) const {
    for (int g = 0; g < lanes_; g += kGroup) rows_to_lanes(at(g) + step, pitch_, steps, buffer + g, width_);
    return {buffer, width_};
  }

 private:
  Aligned<T> list_;
  int lanes_ = 0, width_ = 0;
  int64_t room_ = 0, pitch_ = 0;
  int64_t count_[kMaxLanes];
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
