// The loops of sweeps.h that a loss takes beside them.
#pragma once

#include "cpu/projection/sweeps.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// Of labels other than `ignored`: a = their sum, b = their number, c = how many of them lie outside [0, 1].
template <class T>
static void sweep_labels(const T* x, int64_t steps, int64_t stride, int width, T ignored, LaneSums& out) {
  for (int g = 0; g < width; g += kGroup) {
    T sum[kGroup] = {}, part[kGroup] = {};
    Count<T> number[kGroup] = {}, outside[kGroup] = {};
    const T* row = x + g;
    for (int64_t n = 0; n < steps;) {
      for (const int64_t end = run_end(n, steps); n < end; ++n, row += stride) {
#pragma omp simd
        for (int l = 0; l < kGroup; ++l) {
          const bool counts = !(row[l] == ignored);
          part[l] += masked(counts, row[l]);
          number[l] += counts;
          outside[l] += counts & ((row[l] < 0) | (row[l] > 1));
        }
      }
      join(part, sum);
    }
    flush(sum, out.a + g);
    flush(number, out.b + g);
    flush(outside, out.c + g);
  }
}

template <class T>
static bool contains(const T* x, int64_t steps, int64_t stride, int width, T value) {
  Count<T> found = 0;
  for (int64_t n = 0; n < steps; ++n, x += stride) {
#pragma omp simd reduction(| : found)
    for (int l = 0; l < width; ++l) found |= x[l] == value;
  }
  return found != 0;
}

// The loss terms of one entry: r = y - target, s the sample weight (1 where Weighted is false).
// a = |A|, b = sum_A s r (squared) or sum_A s (Fenchel-Young), c = sum of s times
//     squared:        r^2
//     Fenchel-Young:  r (u - (y + target) / 2),  u = (x - t) / tau;   and e = sum s r
// so that sum (z - target)^2 / 2 - (z - y)^2 / 2 = c + (t / tau) e.  An entry with r = 0 adds nothing, be u infinite.
template <bool FenchelYoung, bool Weighted, class T>
static void sweep_loss(const T* x, const T* target, const T* weight, int64_t steps, int64_t stride,
                       int64_t target_stride, int width, const Lanes<T>& lanes, LaneSums& out) {
  for (int g = 0; g < width; g += kGroup) {
    T mean[kGroup] = {}, loss[kGroup] = {}, balance[kGroup] = {};
    T floor[kGroup], ceiling[kGroup], p[kGroup], d[kGroup], rate[kGroup];
    Count<T> active[kGroup] = {};
#pragma omp simd
    for (int l = 0; l < kGroup; ++l) {
      floor[l] = lanes.floor[g + l];
      ceiling[l] = lanes.ceiling[g + l];
      p[l] = lanes.p[g + l];
      d[l] = lanes.d[g + l];
      rate[l] = lanes.rate[g + l];
    }
    const T *row = x + g, *label = target + g, *importance = weight + g;
    T mean_part[kGroup] = {}, loss_part[kGroup] = {}, balance_part[kGroup] = {};
    for (int64_t n = 0; n < steps;) {
      for (const int64_t end = run_end(n, steps); n < end;
           ++n, row += stride, label += target_stride, importance += Weighted ? width : 0) {
        prefetch(row, stride);
#pragma omp simd
        for (int l = 0; l < kGroup; ++l) {
          bool is_active = (row[l] > floor[l]) & (row[l] < ceiling[l]);
          T u = ((row[l] - p[l]) - d[l]) * rate[l];
          T y = clip01(u), r = y - label[l];
          T s = Weighted ? importance[l] : T(1);
          T sr = s * r;
          active[l] += is_active;
          mean_part[l] += masked(is_active, FenchelYoung ? s : sr);
          if (FenchelYoung) {
            loss_part[l] += masked(r != 0, sr * (u - T(0.5) * (y + label[l])));
            balance_part[l] += sr;
          } else {
            loss_part[l] += sr * r;
          }
        }
      }
      join(mean_part, mean);
      join(loss_part, loss);
      if (FenchelYoung) join(balance_part, balance);
    }
    flush(active, out.a + g);
    flush(mean, out.b + g);
    flush(loss, out.c + g);
    if (FenchelYoung) flush(balance, out.e + g);
  }
}

// out = gain * { squared: 1_A (s r - mean);  Fenchel-Young: s r + 1_A lambda (s - mean), 0 where x is infinite }
template <bool FenchelYoung, bool Weighted, class T>
static void sweep_loss_gradient(const T* x, const T* target, const T* weight, int64_t steps, int64_t stride,
                                int64_t target_stride, int width, const Lanes<T>& lanes, T* out, int64_t out_stride) {
  for (int64_t n = 0; n < steps; ++n) {  // row by row: nothing is kept from one row to the next
    const T *row = x + n * stride, *label = target + n * target_stride,
            *importance = weight + (Weighted ? n * width : 0);
    T* result = out + n * out_stride;
    for (int l = 0; l < width; l += kGroup) prefetch(row + l, stride);
#pragma omp simd
    for (int l = 0; l < width; ++l) {
      bool is_active = (row[l] > lanes.floor[l]) & (row[l] < lanes.ceiling[l]);
      T y = clip01(((row[l] - lanes.p[l]) - lanes.d[l]) * lanes.rate[l]);
      T s = Weighted ? importance[l] : T(1);
      T sr = s * (y - label[l]);
      if (FenchelYoung) {
        bool finite = (row[l] <= kLargest<T>)&(row[l] >= -kLargest<T>);
        T share = masked(Weighted & is_active, lanes.lambda[l] * (s - lanes.mean[l]));
        result[l] = masked(finite, lanes.gain[l] * (sr + share));
      } else {
        result[l] = masked(is_active, lanes.gain[l] * (sr - lanes.mean[l]));
      }
    }
  }
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
