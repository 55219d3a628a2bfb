// The hot loops. A block is `steps` rows of `width` lanes, width a multiple of kGroup; every lane has its own threshold
// and its own accumulators. A long vector is cut into lanes that share one threshold, the columns of a matrix are one
// lane each: both run the same loops (panel.h). Groups of kGroup lanes stay in registers over all steps. Sums of one
// block are kept in T and added to doubles at its end, so a block's size bounds the rounding error; as lanes and blocks
// do not depend on the instruction set, neither do the results.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/projection/accumulators.h"
#include "cpu/simd/half.h"
#include "cpu/simd/simd.h"
#include "newton.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

constexpr int kRun = 16;  // steps summed in T before they join the sum of the block: entries that are all alike round
                          // alike, and such errors grow with the length of a sum

// m ? v : 0 and m ? v : w in integer arithmetic: a conditional might become a branch, and a loop with branches does not
// vectorise on every instruction set.
template <class T>
static inline T masked(bool m, T v) {
  Count<T> bits;
  memcpy(&bits, &v, sizeof v);
  bits &= -Count<T>(m);
  memcpy(&v, &bits, sizeof v);
  return v;
}
template <class T>
static inline T select(bool m, T v, T w) {
  Count<T> a, b, mask = -Count<T>(m);
  memcpy(&a, &v, sizeof v);
  memcpy(&b, &w, sizeof w);
  a = (a & mask) | (b & ~mask);
  memcpy(&v, &a, sizeof v);
  return v;
}

template <class T>
static inline T clip01(T v) {  // nan -> 0
  v = v > 0 ? v : T(0);
  return v < 1 ? v : T(1);
}
template <class V>
static inline V clipped01(V v) {
  return min(max(v, V{}), V{} + 1);
}

// Asks for the entries that a walk over rows comes to next: where rows are far apart, no processor foresees them.
template <class T>
static inline void prefetch(const T* row, int64_t stride, int64_t ahead = 8) {
  __builtin_prefetch(row + ahead * stride);
}

// What a lane knows of its vector: A = { floor < x < ceiling }, y = clip(((x - p) - d) * rate, 0, 1).
template <class T>
struct alignas(64) Lanes {
  T floor[kMaxLanes], ceiling[kMaxLanes], p[kMaxLanes], d[kMaxLanes], rate[kMaxLanes];
  T mean[kMaxLanes];  // backward passes only
};

// Adds one group's accumulators to the doubles; the loop that every sweep ends in.
template <class A>
static inline void flush(const A* sums, double* total) {
#pragma omp simd
  for (int l = 0; l < kGroup; ++l) total[l] += double(sums[l]);
}

template <class V>
static inline void flush_vectors(const V* sums, double* total) {
  decltype(sums[0][0] + 0) lanes[kGroup];
  memcpy(lanes, sums, sizeof lanes);
  flush(lanes, total);
}

// A group's lanes as vectors.
template <class T>
static inline void load_group(const T* from, Vector<T>* to) {
  memcpy(to, from, kGroup * sizeof(T));
}

// The thresholds of a group's lanes as vectors, and what they say of entries v of the i-th vector.
template <class T>
struct GroupThresholds {
  using V = Vector<T>;
  V floor[kVectors<T>], ceiling[kVectors<T>], p[kVectors<T>], d[kVectors<T>], rate[kVectors<T>];

  template <class L>
  GroupThresholds(const L& lanes, int g) {
    load_group(lanes.floor + g, floor);
    load_group(lanes.ceiling + g, ceiling);
    load_group(lanes.p + g, p);
    load_group(lanes.d + g, d);
    load_group(lanes.rate + g, rate);
  }
  Mask<T> is_active(int i, V v) const { return both_greater(greater(v, floor[i]), ceiling[i], v); }
  V scaled(int i, V v) const { return ((v - p[i]) - d[i]) * rate[i]; }  // y before it is clipped
};

// The end of one run of a sum in T: sum += part.
template <class T>
static inline void join(T* part, T* sum) {
#pragma omp simd
  for (int l = 0; l < kGroup; ++l) {
    sum[l] += part[l];
    part[l] = 0;
  }
}
template <class V, int kCount>
static inline void join_vectors(V (&part)[kCount], V (&sum)[kCount]) {
  for (int i = 0; i < kCount; ++i) {
    sum[i] += part[i];
    part[i] = V{};
  }
}
static inline int64_t run_end(int64_t step, int64_t steps) { return step + kRun < steps ? step + kRun : steps; }

// Checked leaves out what is not finite; without it such entries show in the sum, which they leave not finite either.
template <bool Checked, class T>
static void sweep_moments(const T* x, int64_t steps, int64_t stride, int width, const T* shift, LaneMoments<T>& out) {
  for (int g = 0; g < width; g += kGroup) {
    T sum[kGroup] = {}, squares[kGroup] = {}, low[kGroup], high[kGroup], origin[kGroup];
    Count<T> count[kGroup] = {};
#pragma omp simd
    for (int l = 0; l < kGroup; ++l) {
      low[l] = out.range.low[g + l];
      high[l] = out.range.high[g + l];
      origin[l] = shift[g + l];
    }
    const T* row = x + g;
    for (int64_t s = 0; s < steps; ++s, row += stride) {
#pragma omp simd
      for (int l = 0; l < kGroup; ++l) {
        T v = row[l], e = v - origin[l], below = v, above = v;
        if (Checked) {
          bool finite = (v <= kLargest<T>)&(v >= -kLargest<T>);
          e = masked(finite, e);
          below = select(finite, v, low[l]);
          above = select(finite, v, high[l]);
          count[l] += finite;
        }
        sum[l] += e;
        squares[l] += e * e;
        low[l] = below < low[l] ? below : low[l];
        high[l] = above > high[l] ? above : high[l];
      }
    }
#pragma omp simd
    for (int l = 0; l < kGroup; ++l) {
      out.range.low[g + l] = low[l];
      out.range.high[g + l] = high[l];
      out.sums.a[g + l] += Checked ? double(count[l]) : double(steps);
    }
    flush(sum, out.sums.b + g);
    flush(squares, out.sums.c + g);
  }
}

// a = #{x > t}, b = #{x >= t + tau}, c = sum_A (x - p).
template <class T>
static void sweep_counts(const T* x, int64_t steps, int64_t stride, int width, const Lanes<T>& lanes, LaneSums& out) {
  using V = Vector<T>;
  for (int g = 0; g < width; g += kGroup) {
    V sum[kVectors<T>] = {}, part[kVectors<T>] = {}, floor[kVectors<T>], ceiling[kVectors<T>], p[kVectors<T>];
    Counts<T> above[kVectors<T>] = {}, active[kVectors<T>] = {};
    load_group(lanes.floor + g, floor);
    load_group(lanes.ceiling + g, ceiling);
    load_group(lanes.p + g, p);
    const T* row = x + g;
    for (int64_t n = 0; n < steps;) {
      for (const int64_t end = run_end(n, steps); n < end; ++n, row += stride) {
        for (int i = 0; i < kVectors<T>; ++i) {
          const V v = load_vector(row + i * kVectorLanes<T>);
          const auto is_above = greater(v, floor[i]), is_active = both_greater(is_above, ceiling[i], v);
          above[i] = add_one_where(is_above, above[i]);
          active[i] = add_one_where(is_active, active[i]);
          part[i] = add_where(is_active, part[i], v - p[i]);
        }
      }
      join_vectors(part, sum);
    }
    for (int i = 0; i < kVectors<T>; ++i) active[i] = above[i] - active[i];
    flush_vectors(above, out.a + g);
    flush_vectors(active, out.b + g);
    flush_vectors(sum, out.c + g);
  }
}

// a = #{x = inf}, b = #{x is a number}.
template <class T>
static void sweep_special(const T* x, int64_t steps, int64_t stride, int width, LaneSums& out) {
  for (int64_t s = 0; s < steps; ++s) {
#pragma omp simd
    for (int l = 0; l < width; ++l) {
      const T v = x[s * stride + l];
      out.a[l] += v > kLargest<T>;
      out.b[l] += !is_nan(v);
    }
  }
}

// The smallest entry that is one (low) and the largest that is zero (high), one being x > floor.
template <class T>
static void sweep_gap(const T* x, int64_t steps, int64_t stride, int width, const T* floor, LaneRange<T>& out) {
  for (int g = 0; g < width; g += kGroup) {
    T low[kGroup], high[kGroup], edge[kGroup];
#pragma omp simd
    for (int l = 0; l < kGroup; ++l) {
      low[l] = out.low[g + l];
      high[l] = out.high[g + l];
      edge[l] = floor[g + l];
    }
    const T* row = x + g;
    for (int64_t s = 0; s < steps; ++s, row += stride) {
#pragma omp simd
      for (int l = 0; l < kGroup; ++l) {
        T v = row[l];
        bool is_one = v > edge[l];
        T above = select(is_one, v, low[l]), below = select(is_one, high[l], v);
        low[l] = above < low[l] ? above : low[l];
        high[l] = below > high[l] ? below : high[l];
      }
    }
#pragma omp simd
    for (int l = 0; l < kGroup; ++l) {
      out.low[g + l] = low[l];
      out.high[g + l] = high[l];
    }
  }
}

// Calls body(store) with what stores the i-th vector of the group of lanes at g, as far as it is one of `live` lanes.
template <class T, class Body>
static inline void with_store(int g, int live, const Body& body) {
  if (live - g >= kGroup)
    body([](const Vector<T>& v, T* group, int i) { store_vector<T>(v, group + i * kVectorLanes<T>); });
  else
    body([&](const Vector<T>& v, T* group, int i) {
      store_lanes<T>(v, group + i * kVectorLanes<T>, live - g - i * kVectorLanes<T>);
    });
}

template <class T>
static void sweep_project(const T* x, int64_t steps, int64_t stride, int live, const Lanes<T>& lanes, T* y,
                          int64_t y_stride) {
  constexpr int kCount = kVectors<T>;
  for (int g = 0; g < live; g += kGroup) {
    Vector<T> p[kCount], d[kCount], rate[kCount];
    load_group(lanes.p + g, p);
    load_group(lanes.d + g, d);
    load_group(lanes.rate + g, rate);
    with_store<T>(g, live, [&](const auto& store) {
      const T* row = x + g;
      T* out = y + g;
      for (int64_t s = 0; s < steps; ++s, row += stride, out += y_stride)
        for (int i = 0; i < kCount; ++i) {
          const Vector<T> v = load_vector(row + i * kVectorLanes<T>);
          store(clipped01(((v - p[i]) - d[i]) * rate[i]), out, i);
        }
    });
  }
}

// a = |A|, b = sum_A v, and with Products c = sum_A v y, e = sum_A y.
template <bool Products, class T>
static void sweep_jvp_sums(const T* x, const T* v, int64_t steps, int64_t stride, int64_t v_stride, int width,
                           const Lanes<T>& lanes, LaneSums& out) {
  using V = Vector<T>;
  for (int g = 0; g < width; g += kGroup) {
    V sum[kVectors<T>] = {}, part[kVectors<T>] = {}, product[kVectors<T>] = {}, inner[kVectors<T>] = {};
    const GroupThresholds<T> group(lanes, g);
    Counts<T> active[kVectors<T>] = {};
    const T *row = x + g, *tangent = v + g;
    for (int64_t n = 0; n < steps;) {
      for (const int64_t end = run_end(n, steps); n < end; ++n, row += stride, tangent += v_stride) {
        for (int i = 0; i < kVectors<T>; ++i) {
          const V e = load_vector(row + i * kVectorLanes<T>), u = load_vector(tangent + i * kVectorLanes<T>);
          const auto is_active = group.is_active(i, e);
          active[i] = add_one_where(is_active, active[i]);
          part[i] = add_where(is_active, part[i], u);
          if (Products) {
            const V y = zero_unless(is_active, group.scaled(i, e));
            product[i] += zero_unless(is_active, u) * y;
            inner[i] += y;
          }
        }
      }
      join_vectors(part, sum);
    }
    flush_vectors(active, out.a + g);
    flush_vectors(sum, out.b + g);
    if (Products) {
      flush_vectors(product, out.c + g);
      flush_vectors(inner, out.e + g);
    }
  }
}

// out = 1_A (v - mean) rate
template <class T>
static void sweep_jvp_write(const T* x, const T* v, int64_t steps, int64_t stride, int64_t v_stride, int live,
                            const Lanes<T>& lanes, T* out, int64_t out_stride) {
  using V = Vector<T>;
  for (int g = 0; g < live; g += kGroup) {
    V floor[kVectors<T>], ceiling[kVectors<T>], mean[kVectors<T>], rate[kVectors<T>];
    load_group(lanes.floor + g, floor);
    load_group(lanes.ceiling + g, ceiling);
    load_group(lanes.mean + g, mean);
    load_group(lanes.rate + g, rate);
    with_store<T>(g, live, [&](const auto& store) {
      const T *row = x + g, *tangent = v + g;
      T* result = out + g;
      for (int64_t s = 0; s < steps; ++s, row += stride, tangent += v_stride, result += out_stride) {
        for (int i = 0; i < kVectors<T>; ++i) {
          const int l = i * kVectorLanes<T>;
          const V e = load_vector(row + l);
          const auto is_active = both_greater(greater(e, floor[i]), ceiling[i], e);
          store(zero_unless(is_active, (load_vector(tangent + l) - mean[i]) * rate[i]), result, i);
        }
      }
    });
  }
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
