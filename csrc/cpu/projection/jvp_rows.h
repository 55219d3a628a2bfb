// The Jacobian product of rows, row by row: their entries are read in place and stay near between the sums and what
// these are for.
#pragma once

#include "cpu/projection/row_walk.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// Sums over the active entries of kGroup rows.
struct alignas(64) RowSums {
  double active[kGroup], v[kGroup], product[kGroup], y[kGroup];
};

template <class T>
class JvpRows {
 public:
  static bool serves(const Plan& plan, const Strides& strides) { return in_rows(plan, strides) && plan.n >= kGroup; }

  explicit JvpRows(int64_t n) : vectors_(n) {}

  // Rows r < live, which begin at x + r * x_pitch and v + r * v_pitch and are the columns first + r of the lanes.
  template <bool Products>
  void sum(const T* x, int64_t x_pitch, const T* v, int64_t v_pitch, int live, const Lanes<T>& lanes, int first,
           RowSums& sums) {
    for (int r = 0; r < live; ++r) sum_row<Products>(x + r * x_pitch, v + r * v_pitch, lanes, first + r, r);
    total(counts_, live, sums.active);
    total(v_, live, sums.v);
    if (Products) {
      total(products_, live, sums.product);
      total(y_, live, sums.y);
    }
  }

  // out = 1_A (v - mean) rate
  void write(const T* x, const T* v, const Lanes<T>& lanes, int column, T* out) const {
    const V floor = V{} + lanes.floor[column], ceiling = V{} + lanes.ceiling[column], mean = V{} + lanes.mean[column],
            rate = V{} + lanes.rate[column];
    vectors_.for_each(
        [&](int, int64_t j, const auto&) {
          const V e = load_vector(x + j);
          const auto is_active = both_greater(greater(e, floor), ceiling, e);
          store_vector<T>(zero_unless(is_active, (load_vector(v + j) - mean) * rate), out + j);
        },
        [] {});
  }

 private:
  using V = Vector<T>;

  template <bool Products>
  void sum_row(const T* x, const T* v, const Lanes<T>& lanes, int column, int r) {
    const V floor = V{} + lanes.floor[column], ceiling = V{} + lanes.ceiling[column], p = V{} + lanes.p[column],
            d = V{} + lanes.d[column], rate = V{} + lanes.rate[column];
    V sum[kVectors<T>] = {}, part[kVectors<T>] = {}, product[kVectors<T>] = {}, inner[kVectors<T>] = {};
    Counts<T> active[kVectors<T>] = {};
    vectors_.for_each(
        [&](int i, int64_t j, const auto& fresh) {
          const V e = load_vector(x + j), u = load_vector(v + j);
          const Mask<T> is_active = fresh(both_greater(greater(e, floor), ceiling, e));
          active[i] = add_one_where(is_active, active[i]);
          part[i] = add_where(is_active, part[i], u);
          if (Products) {
            const V y = zero_unless(is_active, ((e - p) - d) * rate);
            product[i] += zero_unless(is_active, u) * y;
            inner[i] += y;
          }
        },
        [&] { join_vectors(part, sum); });
    V counts[kVectors<T>];
    for (int i = 0; i < kVectors<T>; ++i) counts[i] = __builtin_convertvector(active[i], V);
    keep(counts, counts_ + r * kGroup);
    keep(sum, v_ + r * kGroup);
    if (Products) {
      keep(product, products_ + r * kGroup);
      keep(inner, y_ + r * kGroup);
    }
  }

  static void keep(const V* lanes, T* row) { memcpy(row, lanes, kGroup * sizeof(T)); }

  // The sum of each row's lanes, in their order.
  static void total(T* rows, int live, double* sums) {
    for (int r = 0; r < kGroup; ++r) sums[r] = 0;
    if (live == 1) {
      for (int l = 0; l < kGroup; ++l) sums[0] += double(rows[l]);
      return;
    }
    memset(rows + live * kGroup, 0, (kGroup - live) * kGroup * sizeof(T));
    alignas(64) T lanes[kGroup * kGroup];
    rows_to_lanes(rows, kGroup, kGroup, lanes, kGroup);
    for (int l = 0; l < kGroup; ++l) flush(lanes + l * kGroup, sums);
  }

  const RowWalk<T> vectors_;
  alignas(64) T counts_[kGroup * kGroup], v_[kGroup * kGroup], products_[kGroup * kGroup], y_[kGroup * kGroup];
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
