// What a sweep leaves in each lane, and how lanes and chunks of one vector become its totals: clear, fold, merge.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "cpu/simd/isa.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

constexpr int kMaxLanes = 240;  // lcm(15, 16)

// Accumulators by lane; what each holds is said where it is filled. After fold() the first `columns` lanes hold the
// totals of the vectors; lane l belongs to vector l % columns.
struct alignas(64) LaneSums {
  double a[kMaxLanes], b[kMaxLanes], c[kMaxLanes], e[kMaxLanes];

  void clear(int width) {
    for (double* row : {a, b, c, e}) memset(row, 0, width * sizeof(double));
  }
  static void fold(double* row, int width, int columns) {
    int lanes = width;
    if (columns == 1) {
      for (; lanes > 8; lanes /= 2) {
#pragma omp simd
        for (int l = 0; l < lanes / 2; l += 1) row[l] += row[l + lanes / 2];
      }
      row[0] = ((row[0] + row[4]) + (row[2] + row[6])) + ((row[1] + row[5]) + (row[3] + row[7]));
      return;
    }
    for (; lanes % 2 == 0 && lanes / 2 % columns == 0; lanes /= 2)
      for (int l = 0; l < lanes / 2; ++l) row[l] += row[l + lanes / 2];
    for (int first = columns; first < lanes; first += columns)
      for (int l = 0; l < columns; ++l) row[l] += row[first + l];
  }
  void fold(int width, int columns) {
    for (double* row : {a, b, c, e}) fold(row, width, columns);
  }
  void merge(const LaneSums& next, int columns) {
    for (int l = 0; l < columns; ++l) {
      a[l] += next.a[l];
      b[l] += next.b[l];
      c[l] += next.c[l];
      e[l] += next.e[l];
    }
  }
};

// The smallest and the largest of what a sweep looks at.
template <class T>
struct alignas(64) LaneRange {
  T low[kMaxLanes], high[kMaxLanes];

  void clear(int width) {
    for (int l = 0; l < width; ++l) {
      low[l] = T(HUGE_VAL);
      high[l] = -T(HUGE_VAL);
    }
  }
  void take(int l, T smaller, T larger) {
    low[l] = smaller < low[l] ? smaller : low[l];
    high[l] = larger > high[l] ? larger : high[l];
  }
  void fold(int width, int columns) {
    int lanes = width;
    for (; lanes % 2 == 0 && lanes / 2 % columns == 0; lanes /= 2)
      for (int l = 0; l < lanes / 2; ++l) take(l, low[l + lanes / 2], high[l + lanes / 2]);
    for (int first = columns; first < lanes; first += columns)
      for (int l = 0; l < columns; ++l) take(l, low[first + l], high[first + l]);
  }
  void merge(const LaneRange& next, int columns) {
    for (int l = 0; l < columns; ++l) take(l, next.low[l], next.high[l]);
  }
};

// Over the finite entries: a = their number, b = sum (x - shift), c = sum (x - shift)^2, and their range.
template <class T>
struct LaneMoments {
  LaneSums sums;
  LaneRange<T> range;

  void clear(int width) {
    sums.clear(width);
    range.clear(width);
  }
  void fold(int width, int columns) {
    sums.fold(width, columns);
    range.fold(width, columns);
  }
  void merge(const LaneMoments& next, int columns) {
    sums.merge(next.sums, columns);
    range.merge(next.range, columns);
  }
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
