// The Jacobian product of the projection, out = 1_A (v - mean_A v) / tau, and with it the sums that the derivatives in
// k and tau need. x and v are read once: v stays on chip between the sums and the result, and of x what says which
// entries are active. A warp or part of one serves a short vector, a block, a cluster or the blocks of a grid a longer
// one.
#include "launch.cuh"
#include "projector.cuh"
#include "register_rows.cuh"

namespace hypersimplex {
namespace cuda {
namespace {

// Whether a vector's products can be formed in T; true also where no entry is active.
template <class T>
__device__ __forceinline__ bool plain(const Projector<T>& projector) {
  return projector.regular || fabs(projector.p) == kInfinity<T>;
}

// What follows from |A| and the sums over A of v, v y and y.
struct Product {
  double mean, grad_tau;
  __device__ Product(double p, double active, double v, double vy, double y, double tau) {
    mean = active > 0 ? v / active : 0;
    grad_tau = -(vy - mean * y) / tau;
    if (p != p) mean = grad_tau = p;
  }
  __device__ void store(const JvpArgs& args, int64_t vector) const {
    if (args.grad_k) args.grad_k[vector] = mean;
    if (args.grad_tau) args.grad_tau[vector] = grad_tau;
  }
};

template <class T>
__device__ __forceinline__ void aim(Projector<T>& projector, const JvpArgs& args, const VectorIndex& index) {
  if (index.live)
    projector.set({args.state.p[index.vector], args.state.d[index.vector]}, at(args.tau, index.vector));
  else
    projector.set({kInfinity<double>, 0}, 1);
}

// ---- short vectors ----

template <class In>
__global__ void __launch_bounds__(tuning::kShortThreads)
    multiply_short(const __grid_constant__ JvpArgs args, const __grid_constant__ Plan plan) {
  using T = Compute<In>;
  using Items = typename RegisterRows<In>::Items;
  const RegisterRows<In> rows(plan, args.shape);
  if (!rows.exists()) return;
  Projector<T> projector;
  aim(projector, args, rows.index);
  Items x, v;
  rows.load(static_cast<const In*>(args.x), args.x_strides, x, -kInfinity<T>);
  rows.load(static_cast<const In*>(args.v), args.v_strides, v, T(0));

  unsigned active = 0;  // a bit per item
  T sum_v = 0, sum_vy = 0, sum_y = 0;
  auto add = [&](int i, T y) {
    if (!projector.active(x[i])) return;
    active |= 1u << i;
    sum_v += v[i];
    sum_vy += v[i] * y;
    sum_y += y;
  };
  if (plain(projector))
    rows.for_items([&](int i) { add(i, projector.position(x[i])); });
  else
    rows.for_items([&](int i) { add(i, T(projector.irregular_y(x[i]))); });
  const LaneGroup lanes = rows.lanes();
  const Product product(projector.p, sum(unsigned(lane_count(active)), lanes), sum(double(sum_v), lanes),
                        sum(double(sum_vy), lanes), sum(double(sum_y), lanes), projector.tau);
  if (rows.index.live && rows.slot == 0) product.store(args, rows.index.vector);
  if (!args.out) return;

  const T mean = T(product.mean), nothing = projector.p != projector.p ? projector.p : T(0);
  if (plain(projector))
    rows.for_items([&](int i) { v[i] = active >> i & 1 ? (v[i] - mean) * projector.rate : nothing; });
  else
    rows.for_items([&](int i) { v[i] = active >> i & 1 ? T(projector.by_tau(double(v[i]) - product.mean)) : nothing; });
  rows.store(static_cast<In*>(args.out), args.out_strides, v);
}

// ---- longer ones ----

template <class T>
struct alignas(16) ProductVectorState {
  VectorIndex index;
  Projector<T> projector;
  double mean;
};

// v is what a tile keeps; x is read beside it, where wanted.
template <class In, class Tile>
struct Tangents : Entries<In, Tile> {
  using T = Compute<In>;
  const Operand<const In>& x;
  const bool wanted;

  __device__ Tangents(const Tile& tile, const Operand<const In>& v, const Operand<const In>& x, bool wanted)
      : Entries<In, Tile>{tile, v, 0}, x(x), wanted(wanted) {}
  template <int U, int N>
  struct Beside {
    T x[U][N];
  };
  template <int U, int N>
  __device__ __forceinline__ void read_beside(int i, int step, T (&)[U][N], Beside<U, N>& beside) const {
    if (wanted) this->tile.load(x, i, step, beside.x, -kInfinity<T>);
  }
};

// A tile of v, and a byte per access of the first pass that says which of its entries are active.
template <class In>
class Multiplier {
 public:
  using T = Compute<In>;
  using TileType = Tile<In, true, 2>;

  __device__ Multiplier(const JvpArgs& args, const Plan& plan, const TileType& tile, const ProductVectorState<T>& state)
      : args_(args), plan_(plan), tile_(tile), state_(state) {}

  __device__ __forceinline__ void add(Sums<2, 3>& own) const {
    const Operand<const In> x_at = x(), v_at = v();
    T sum_v = 0, sum_vy = 0, sum_y = 0;
    auto take = [&](T v, T y, bool active) {
      if (!active) return;
      ++own.count[0];
      sum_v += v;
      sum_vy += v * y;
      sum_y += y;
    };
    auto flush = [&] {
      own.sum[0] += double(sum_v);
      own.sum[1] += double(sum_vy);
      own.sum[2] += double(sum_y);
      sum_v = sum_vy = sum_y = 0;
    };
    if (plain(state_.projector)) {
      const Projector<T> projector = state_.projector;
      tile_.fill(
          Tangents<In, TileType>(tile_, v_at, x_at, true),
          [&](int i, const auto& v, const auto& beside, int u) {
            const unsigned active = active_bits(projector, beside.x[u]);
            int e = 0;
            for (T x : beside.x[u]) {
              take(v[e], projector.position(x), active >> e & 1);
              ++e;
            }
            if (plan_.resident) tile_.mark(i, v, active);
          },
          flush);
    } else {
      tile_.each_singly([&](int i) {
        const T x = value(x_at, i);
        take(value(v_at, i), T(state_.projector.irregular_y(x)), state_.projector.active(x));
        flush();
      });
    }
  }

  __device__ __forceinline__ void write(const Operand<In>& out) const {
    const Operand<const In> x_at = x(), v_at = v();
    const Projector<T>& projector = state_.projector;
    if (plain(projector)) {
      const Projector<T> fast = projector;
      const T mean = T(state_.mean);
      tile_.pass(
          Tangents<In, TileType>(tile_, v_at, x_at, !plan_.resident),
          [&](int i, auto& v, const auto& beside, int u) {
            unsigned active = plan_.resident ? tile_.marked(i, v) : active_bits(fast, beside.x[u]);
            for (T& entry : v) {
              entry = active & 1 ? (entry - mean) * fast.rate : T(0);
              active >>= 1;
            }
            tile_.store(out, i, v);
          },
          [] {});
    } else {
      tile_.each_singly([&](int i) {
        T result[1] = {projector.p != projector.p ? projector.p : T(0)};
        if (projector.active(value(x_at, i))) result[0] = T(projector.by_tau(double(value(v_at, i)) - state_.mean));
        tile_.store(out, i, result);
      });
    }
  }

 private:
  // Made anew for each pass, rather than kept in registers between them.
  __device__ __forceinline__ Operand<const In> x() const { return operand(args_.x, args_.x_strides); }
  __device__ __forceinline__ Operand<const In> v() const { return operand(args_.v, args_.v_strides); }
  __device__ __forceinline__ Operand<const In> operand(const void* data, const Strides& strides) const {
    return {static_cast<const In*>(data), strides, args_.shape, plan_, state_.index, tile_.begin()};
  }
  __device__ static T value(const Operand<const In>& from, int i) { return widen(load_constant(from.entry(i))); }
  // Bit e says whether entry e of an access is active.
  template <int N>
  __device__ __forceinline__ static unsigned active_bits(const Projector<T>& projector, const T (&x)[N]) {
    unsigned bits = 0;
#pragma unroll
    for (int e = 0; e < N; ++e) bits |= unsigned(projector.active(x[e])) << e;
    return bits;
  }

  const JvpArgs& args_;
  const Plan& plan_;
  const TileType& tile_;
  const ProductVectorState<T>& state_;
};

template <class In>
__global__ void __launch_bounds__(tuning::kMaxThreads)
    multiply_team(const __grid_constant__ JvpArgs args, const __grid_constant__ Plan plan, void* workspace) {
  using T = Compute<In>;
  Team team(plan, workspace);
  ProductVectorState<T>& own = team.states<ProductVectorState<T>>()[team.column()];
  for (int number = team.number(); number < plan.tiles; number += plan.teams) {
    if (team.decides()) {
      own.index = locate(plan, args.shape, number, team.column());
      aim(own.projector, args, own.index);
    }
    block_barrier();
    const typename Multiplier<In>::TileType tile(plan, team, own.index.live, team.bytes<ProductVectorState<T>>());
    const Multiplier<In> multiplier(args, plan, tile, own);
    Sums<2, 3> sums;
    multiplier.add(sums);
    const auto total = team.reduce(sums, true);
    team.decide([&] {
      const Projector<T>& projector = own.projector;
      const Product product(projector.p, total.count(0), total.sum(0), total.sum(1), total.sum(2), projector.tau);
      own.mean = product.mean;
      if (own.index.live && team.rank() == 0) product.store(args, own.index.vector);
      return 0;
    });
    if (args.out)
      multiplier.write(
          Operand<In>(static_cast<In*>(args.out), args.out_strides, args.shape, plan, own.index, tile.begin()));
    block_barrier();
  }
  team.leave();
}

Plan plan_of(JvpArgs& args) {
  Layout layout(args.shape, args.dtype,
                {{args.x, &args.x_strides}, {args.v, &args.v_strides}, {args.out, &args.out_strides}});
  size_t state_bytes =
      args.dtype == DType::kFloat64 ? sizeof(ProductVectorState<double>) : sizeof(ProductVectorState<float>);
  const void* kernel = for_storage_type(
      args.dtype, [](auto storage) { return address_of(multiply_team<typename decltype(storage)::type>); });
  return Planner(layout.problem(state_bytes, true), device_limits(kernel)).choose(true);
}

}  // namespace

size_t jvp_workspace(const JvpArgs& call) {
  JvpArgs args = call;
  return GridWorkspace::bytes(plan_of(args));
}

void jvp(const JvpArgs& call, void* workspace, void* stream) {
  JvpArgs args = call;
  const Plan plan = plan_of(args);
  for_storage_type(args.dtype, [&](auto storage) {
    using In = typename decltype(storage)::type;
    if (plan.regime == Regime::kShort)
      launch(plan, stream, "jvp", multiply_short<In>, args, plan);
    else
      launch(plan, stream, "jvp", multiply_team<In>, args, plan, prepare_workspace(plan, workspace, stream));
  });
}

}  // namespace cuda
}  // namespace hypersimplex
