// The Jacobian product of the projection, out = 1_A (v - mean_A v) / tau: one sweep for the sums over the active set A,
// one that writes.
#include <type_traits>

#include "cpu/launchers.h"
#include "cpu/projection/jvp_rows.h"
#include "cpu/projection/lane_thresholds.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {
namespace {

// |A|, sum_A v, sum_A v y, sum_A y of one vector.
struct ActiveSums {
  double active, v, product, y;
  double mean() const { return active == 0 ? 0 : v / active; }
  double grad_tau(double tau) const { return -(product - mean() * y) / tau; }
};

// A vector that sweeps.h cannot express, entry by entry.
template <class In>
ActiveSums multiply_irregular(const Panel& panel, const Operand<const In>& x, const Operand<const In>& v, In* out,
                              const Strides& out_strides, int column, Pair t, double tau) {
  using T = Compute<In>;
  const Shape& shape = panel.plan.shape;
  Operand<In> to(out, out_strides, panel);
  ActiveSums sums{};
  auto project = [&](int64_t j) { return project_entry(load(*x.entry(shape, column, j)), t.p, t.d, tau); };
  for (int64_t j = 0; j < panel.plan.n; ++j) {
    double y = project(j), tangent = load(*v.entry(shape, column, j));
    if (!(y > 0 && y < 1)) continue;
    sums.active += 1;
    sums.v += tangent;
    sums.product += tangent * y;
    sums.y += y;
  }
  if (is_nan(t.p)) sums.v = sums.product = sums.active = t.p;
  for (int64_t j = 0; out && j < panel.plan.n; ++j) {
    double y = project(j), tangent = load(*v.entry(shape, column, j));
    double product = y > 0 && y < 1 ? (tangent - sums.mean()) / tau : 0;
    store(T(is_nan(t.p) ? t.p : product), *to.entry(shape, column, j));
  }
  return sums;
}

// Rows with few active entries, kAhead at a time: their places are listed, and so v is read there alone, and asked for
// while the next rows are searched. The others are left to multiply_panel.
template <class T>
class SparseRows {
 public:
  SparseRows(const JvpArgs& args, const Plan& plan) : args_(args), plan_(plan) {}

  template <class Body>
  void multiply(int threads, const Body& multiply_panel) const {
    for_each_batch(plan_, threads, [&](int64_t begin, int rows) {
      constexpr int64_t kPlaces = kMostRow / kFew + kStretch + kGroup;
      const ScratchArray<int32_t> places(kAhead * kPlaces);
      for (int64_t first = begin; first < begin + rows; first += kAhead) {
        int64_t counts[kAhead];
        const int live = int(smaller(kAhead, begin + rows - first));
        for (int r = 0; r < live; ++r) counts[r] = prepare(first + r, places + r * kPlaces);
        for (int r = 0; r < live; ++r) {
          if (counts[r] >= 0)
            finish(first + r, places + r * kPlaces, counts[r]);
          else
            multiply_panel(Panel(plan_, first + r), 1);
        }
      }
    });
  }

 private:
  static constexpr int kAhead = 4;
  static constexpr int64_t kFew = 16;  // a row of n entries has few active ones if they are at most n / kFew
  static constexpr int64_t kStretch = 16 * kGroup;

  template <class Data>
  Data* row(Data* data, const Strides& strides, int64_t i) const {
    return Operand<Data>(data, strides, Panel(plan_, i)).at;
  }

  // Lists the active entries and clears the result; their number, or -1 where they are not few.
  int64_t prepare(int64_t i, int32_t* places) const {
    const Pair t{args_.state.p[i], args_.state.d[i]};
    const double tau = at(args_.tau, i);
    if (!regular<T>(t.p, t.d, tau)) return -1;
    const T* x = row(static_cast<const T*>(args_.x), args_.x_strides, i);
    const T* v = row(static_cast<const T*>(args_.v), args_.v_strides, i);
    const int64_t n = plan_.n;
    int64_t count = 0, j = 0;
    if (is_finite(t.p)) {
      const T floor = active_floor<T>(t), ceiling = active_ceiling<T>(t, tau);
      const Vector<T> below = Vector<T>{} + floor, above = Vector<T>{} + ceiling;
      while (j + kVectorLanes<T> <= n) {
        const int64_t stop = smaller(j + kStretch, n);
        for (; j + kVectorLanes<T> <= stop; j += kVectorLanes<T>) {
          const Vector<T> e = load_vector(x + j);
          count += compress_store_places(both_greater(greater(e, below), above, e), int32_t(j), places + count);
        }
        if (count * kFew > n) return -1;
      }
      for (; j < n; ++j) {
        places[count] = int32_t(j);
        count += (x[j] > floor) & (x[j] < ceiling);
      }
      if (count * kFew > n) return -1;
    }
    for (int64_t a = 0; a < count; ++a) __builtin_prefetch(v + places[a]);
    if (args_.out) memset(row(static_cast<T*>(args_.out), args_.out_strides, i), 0, n * sizeof(T));
    return count;
  }

  void finish(int64_t i, const int32_t* places, int64_t count) const {
    const T* v = row(static_cast<const T*>(args_.v), args_.v_strides, i);
    const double tau = at(args_.tau, i);
    ActiveSums sums{double(count), 0, 0, 0};
    for (int64_t a = 0; a < count; ++a) sums.v += v[places[a]];
    if (args_.grad_tau) {
      const T* x = row(static_cast<const T*>(args_.x), args_.x_strides, i);
      for (int64_t a = 0; a < count; ++a) {
        const double y = project_entry(x[places[a]], args_.state.p[i], args_.state.d[i], tau);
        sums.product += y * v[places[a]];
        sums.y += y;
      }
      args_.grad_tau[i] = sums.grad_tau(tau);
    }
    if (args_.grad_k) args_.grad_k[i] = sums.mean();
    if (!args_.out) return;
    T* out = row(static_cast<T*>(args_.out), args_.out_strides, i);
    const T mean = T(sums.mean()), rate = T(1 / tau);
    for (int64_t a = 0; a < count; ++a) out[places[a]] = (v[places[a]] - mean) * rate;
  }

  const JvpArgs& args_;
  const Plan& plan_;
};

// The vectors of a panel, by the loops of sweeps.h or of jvp_rows.h.
template <class In>
class PanelProduct {
  using T = Compute<In>;

 public:
  PanelProduct(const JvpArgs& args, const Panel& panel)
      : args_(args),
        panel_(panel),
        x_(static_cast<const In*>(args.x), args.x_strides, panel),
        v_(static_cast<const In*>(args.v), args.v_strides, panel),
        out_(static_cast<In*>(args.out), args.out_strides, panel) {
    set_lanes(lanes_, panel, args.state, args.tau);
  }

  void multiply_lanes(int threads) {
    const Plan& plan = panel_.plan;
    const bool one_block = plan.steps <= plan.block_steps && plan.full_steps == plan.steps;
    const ScratchArray<T> kept(one_block ? 2 * kBlock : 0);
    View<const T> x{}, v{};
    // Calls body(x, v) for a block; one that is the only one is fetched once.
    auto with_entries = [&](int64_t step, int64_t steps, const auto& body) {
      if (!one_block) {
        const ScratchArray<T> buffers(2 * kBlock);
        return body(fetch(panel_, x_, step, steps, -T(HUGE_VAL), buffers),
                    fetch(panel_, v_, step, steps, T(0), buffers + kBlock));
      }
      if (!x.at) {
        x = fetch(panel_, x_, step, steps, -T(HUGE_VAL), kept);
        v = fetch(panel_, v_, step, steps, T(0), kept + kBlock);
      }
      body(x, v);
    };
    const Scratch<LaneSums> swept;
    const LaneSums& total = *swept;
    sweep(plan, threads, *swept, [&](int64_t step, int64_t steps, LaneSums& out) {
      with_entries(step, steps, [&](View<const T> x, View<const T> v) {
        if (args_.grad_tau)
          sweep_jvp_sums<true>(x.at, v.at, steps, x.stride, v.stride, panel_.lanes(), lanes_, out);
        else
          sweep_jvp_sums<false>(x.at, v.at, steps, x.stride, v.stride, panel_.lanes(), lanes_, out);
      });
    });
    for (int c = 0; c < plan.columns; ++c) set_sums(c, {total.a[c], total.b[c], total.c[c], total.e[c]});
    repeat(lanes_.mean, plan.width, plan.columns);
    if (!args_.out) return;
    for_each_chunk(plan, threads, [&](int64_t step, int64_t steps) {
      with_entries(step, steps, [&](View<const T> x, View<const T> v) {
        const ScratchArray<T> buffer(kBlock);
        View<T> out = destination<In, T>(panel_, out_, step, steps, buffer);
        sweep_jvp_write(x.at, v.at, steps, x.stride, v.stride, panel_.live_lanes(), lanes_, out.at, out.stride);
        deliver<In, T>(panel_, out_, step, steps, out, buffer);
      });
    });
  }

  void multiply_rows() {
    const Scratch<JvpRows<T>> product(panel_.plan.n);
    JvpRows<T>& rows = *product;
    RowSums totals;
    for (int first = 0; first < panel_.live; first += kGroup) {
      const int live = int(smaller(kGroup, panel_.live - first));
      const T *x = x_.at + first * x_.lane, *v = v_.at + first * v_.lane;
      if (args_.grad_tau)
        rows.template sum<true>(x, x_.lane, v, v_.lane, live, lanes_, first, totals);
      else
        rows.template sum<false>(x, x_.lane, v, v_.lane, live, lanes_, first, totals);
      for (int r = 0; r < live; ++r) {
        set_sums(first + r, {totals.active[r], totals.v[r], totals.product[r], totals.y[r]});
        if (args_.out)
          rows.write(x + r * x_.lane, v + r * v_.lane, lanes_, first + r, out_.at + (first + r) * out_.lane);
      }
    }
  }

  // What is wanted beside the product; and all of it for vectors that sweeps.h cannot express.
  void finish() {
    const int64_t first = panel_.vector(0);
    for (int c = 0; c < panel_.live; ++c) {
      const double p = args_.state.p[first + c], d = args_.state.d[first + c], tau = at(args_.tau, first + c);
      if (is_nan(p) || (is_finite(p) && !regular<T>(p, d, tau)))
        sums_[c] = multiply_irregular(panel_, x_, v_, static_cast<In*>(args_.out), args_.out_strides, c, {p, d}, tau);
      if (args_.grad_k) args_.grad_k[first + c] = sums_[c].mean();
      if (args_.grad_tau) args_.grad_tau[first + c] = sums_[c].grad_tau(tau);
    }
  }

 private:
  void set_sums(int column, const ActiveSums& sums) {
    sums_[column] = sums;
    lanes_.mean[column] = T(sums.mean());
  }

  const JvpArgs& args_;
  const Panel& panel_;
  const Operand<const In> x_, v_;
  const Operand<In> out_;
  Lanes<T> lanes_;
  ActiveSums sums_[kMaxLanes];
};

template <class In>
void multiply(const JvpArgs& args, int threads) {
  using T = Compute<In>;
  const Plan plan = make_plan(args.shape, args.x_strides, threads);
  auto serves = [&](const Strides& strides) { return JvpRows<T>::serves(plan, strides); };
  const bool rows = std::is_same_v<In, T> && serves(args.x_strides) && serves(args.v_strides) &&
                    (!args.out || serves(args.out_strides));
  auto multiply_panel = [&](const Panel& panel, int inner_threads) {
    const Scratch<PanelProduct<In>> product(args, panel);
    if constexpr (std::is_same_v<In, T>) {
      if (rows) product->multiply_rows();
    }
    if (!rows) product->multiply_lanes(inner_threads);
    product->finish();
  };
  if constexpr (std::is_same_v<In, T>) {
    if (rows && in_batches(plan, args.x_strides)) return SparseRows<T>(args, plan).multiply(threads, multiply_panel);
  }
  for_each_panel(plan, threads, multiply_panel);
}

}  // namespace

void jvp(const JvpArgs& args, int threads) { HYPERSIMPLEX_DISPATCH(args.dtype, multiply, args, threads); }

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
