// The loops of sweeps.h that a loss takes beside them.
#pragma once

#include "cpu/projection/sweeps.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// Of labels other than `ignored`: a = their sum, b = their number, c = how many of them lie outside [0, 1].
template <class T>
static void sweep_labels(const T* x, int64_t steps, int64_t stride, int width, T ignored, LaneSums& out) {
  using V = Vector<T>;
  constexpr int kCount = kVectors<T>;
  for (int g = 0; g < width; g += kGroup) {
    V sum[kCount] = {}, part[kCount] = {};
    Counts<T> taken[kCount] = {}, outside[kCount] = {};
    const T* row = x + g;
    for (int64_t n = 0; n < steps;) {
      for (const int64_t end = run_end(n, steps); n < end; ++n, row += stride) {
        for (int i = 0; i < kCount; ++i) {
          const V v = load_vector(row + i * kVectorLanes<T>);
          const auto takes_part = and_not(equal(V{}, V{}), equal(v, V{} + ignored));
          taken[i] = add_one_where(takes_part, taken[i]);
          part[i] = add_where(takes_part, part[i], v);
          outside[i] = add_one_where(Mask<T>(takes_part & (greater(V{}, v) | greater(v, V{} + 1))), outside[i]);
        }
      }
      join_vectors(part, sum);
    }
    flush_vectors(sum, out.a + g);
    flush_vectors(taken, out.b + g);
    flush_vectors(outside, out.c + g);
  }
}

template <class T>
static bool contains(const T* x, int64_t steps, int64_t stride, int width, T value) {
  Mask<T> found = greater(Vector<T>{}, Vector<T>{});
  for (int64_t n = 0; n < steps; ++n, x += stride)
    for (int l = 0; l < width; l += kVectorLanes<T>)
      found = Mask<T>(found | equal(load_vector(x + l), Vector<T>{} + value));
  return any(found);
}

// What a sweep reads as the targets of a block: an array, or the places of one label in each row of lanes.
template <class T>
struct DenseTargets {
  const T* at;
  int64_t stride;

  Vector<T> operator()(int64_t row, int lane) const { return load_vector(at + row * stride + lane); }
};
template <class T>
struct LabelTargets {
  const Count<T>* lane_of;  // of each row's label, any number outside the block where it has none there
  T label, rest;

  Vector<T> operator()(int64_t row, int lane) const {
    return select(equal(Counts<T>{} + (lane_of[row] - lane), lane_numbers<T>()), Vector<T>{} + label,
                  Vector<T>{} + rest);
  }
};

// The loss terms of one entry: r = y - target, s the sample weight (1 where Weighted is false).
// a = |A|, b = sum_A s r (squared) or sum_A s (Fenchel-Young), c = sum of s times
//     squared:        r^2
//     Fenchel-Young:  r (u - (y + target) / 2),  u = (x - t) / tau;   and e = sum s r
// so that sum (z - target)^2 / 2 - (z - y)^2 / 2 = c + (t / tau) e.  An entry with r = 0 adds nothing, be u infinite.
template <bool FenchelYoung, bool Weighted, class T, class Targets>
static void sweep_loss(const T* x, const Targets targets, const T* weight, int64_t steps, int64_t stride, int width,
                       int weight_stride, const Lanes<T>& lanes, LaneSums& out) {
  using V = Vector<T>;
  constexpr int kCount = kVectors<T>;
  for (int g = 0; g < width; g += kGroup) {
    V mean[kCount] = {}, mean_part[kCount] = {}, loss[kCount] = {}, loss_part[kCount] = {};
    V balance[kCount] = {}, balance_part[kCount] = {};
    const GroupThresholds<T> group(lanes, g);
    Counts<T> active[kCount] = {};
    const T *row = x + g, *importance = weight + g;
    for (int64_t n = 0; n < steps;) {
      for (const int64_t end = run_end(n, steps); n < end;
           ++n, row += stride, importance += Weighted ? weight_stride : 0) {
        for (int i = 0; i < kCount; ++i) {
          const int l = i * kVectorLanes<T>;
          const V v = load_vector(row + l), target = targets(n, g + l);
          prefetch(row + l, stride, 32);
          const V u = group.scaled(i, v), y = clipped01(u), r = y - target;
          const V s = Weighted ? load_vector(importance + l) : V{} + 1, sr = Weighted ? s * r : r;
          const auto is_active = group.is_active(i, v);
          active[i] = add_one_where(is_active, active[i]);
          mean_part[i] = add_where(is_active, mean_part[i], FenchelYoung ? s : sr);
          if (FenchelYoung) {
            loss_part[i] += select(equal(r, V{}), V{}, sr * (u - T(0.5) * (y + target)));
            balance_part[i] += sr;
          } else {
            loss_part[i] += sr * r;
          }
        }
      }
      join_vectors(mean_part, mean);
      join_vectors(loss_part, loss);
      if (FenchelYoung) join_vectors(balance_part, balance);
    }
    flush_vectors(active, out.a + g);
    flush_vectors(mean, out.b + g);
    flush_vectors(loss, out.c + g);
    if (FenchelYoung) flush_vectors(balance, out.e + g);
  }
}

// What the lanes of a gradient know, any number of them.
template <class T>
struct GradientLanes {
  T *floor, *ceiling, *p, *d, *rate, *gain, *mean, *lambda;

  static int64_t size(int64_t lanes) { return 8 * lanes; }
  GradientLanes(T* memory, int64_t lanes)
      : floor(memory),
        ceiling(memory + lanes),
        p(memory + 2 * lanes),
        d(memory + 3 * lanes),
        rate(memory + 4 * lanes),
        gain(memory + 5 * lanes),
        mean(memory + 6 * lanes),
        lambda(memory + 7 * lanes) {}
};

// out = gain * { squared: 1_A (s r - mean);  Fenchel-Young: s r + 1_A lambda (s - mean), 0 where x is infinite }
// A few rows at a time, so that a wide block is walked row by row and a group's thresholds still serve several loads.
template <bool FenchelYoung, bool Weighted, class T, class Targets>
static void sweep_loss_gradient(const T* x, const Targets targets, const T* weight, int64_t steps, int64_t stride,
                                int live, int weight_stride, const GradientLanes<T> lanes, T* out, int64_t out_stride) {
  using V = Vector<T>;
  constexpr int kCount = kVectors<T>;
  constexpr int64_t kTogether = 4;
  for (int64_t first = 0; first < steps; first += kTogether) {
    const int64_t end = first + kTogether < steps ? first + kTogether : steps;
    for (int g = 0; g < live; g += kGroup) {
      const GroupThresholds<T> group(lanes, g);
      V gain[kCount], mean[kCount], lambda[kCount];
      load_group(lanes.gain + g, gain);
      load_group(lanes.mean + g, mean);
      if (FenchelYoung && Weighted) load_group(lanes.lambda + g, lambda);
      with_store<T>(g, live, [&](const auto& store) {
        const T* row = x + first * stride + g;
        T* result = out + first * out_stride + g;
        for (int64_t n = first; n < end; ++n, row += stride, result += out_stride) {
          for (int i = 0; i < kCount; ++i) {
            const int l = i * kVectorLanes<T>;
            const V v = load_vector(row + l);
            prefetch(row + l, stride);
            const auto is_active = group.is_active(i, v);
            const V y = clipped01(group.scaled(i, v)), r = y - targets(n, g + l);
            const V s = Weighted ? load_vector(weight + n * weight_stride + g + l) : V{} + 1, sr = Weighted ? s * r : r;
            if (FenchelYoung) {
              const auto is_finite = both_greater(greater(V{} + T(HUGE_VAL), v), v, V{} - T(HUGE_VAL));
              const V share = Weighted ? zero_unless(is_active, lambda[i] * (s - mean[i])) : V{};
              store(zero_unless(is_finite, gain[i] * (sr + share)), result, i);
            } else {
              store(zero_unless(is_active, gain[i] * (sr - mean[i])), result, i);
            }
          }
        }
      });
    }
  }
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
