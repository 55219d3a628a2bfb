// Products with the Jacobians of isotonic regression. A thread has a chunk of 32 elements, sums what it holds of each
// block, and learns by a segmented scan what the block that reaches in from the left, and the one that reaches out to
// the right, amount to elsewhere; sums of different blocks are never mixed. Of long vectors blocks scan tiles: one
// launch sums them, one connects them, one writes.
#include "rows.cuh"

namespace hypersimplex {
namespace cuda {
namespace {

constexpr int kChunk = 32;  // elements, as bits of a word
constexpr int kNobody = -1;

// The last block that begins in some chunks, or of no beginning: who holds its beginning, and its sums so far.
struct Run {
  double v, weight;
  int owner;
};
__device__ __forceinline__ Run join(const Run& a, const Run& b) {
  return b.owner != kNobody ? b : Run{a.v + b.v, a.weight + b.weight, a.owner};
}
__device__ __forceinline__ Run run_from_lane(const Run& run, int lane) {
  return {from_lane(run.v, lane), from_lane(run.weight, lane), from_lane(run.owner, lane)};
}
// Over groups of `lanes` lanes: each lane's run joined to those before it.
__device__ __forceinline__ Run scan_lanes(Run run, int lanes) {
  const int own = lane_id() & (lanes - 1);
  // Before each turn `run` joins the runs of the last `distance` lanes up to this one, or of all that there are.
  for (int distance = 1; distance < lanes; distance *= 2) {
    const Run before = run_from_lane(run, own >= distance ? lane_id() - distance : lane_id());
    if (own >= distance) run = join(before, run);
  }
  return run;
}

// What a tile of a long vector holds.
struct TileRuns {
  Run head;   // of the block that begins before the tile
  Run tail;   // of the last block that begins in it; without an owner where none does
  Run carry;  // left by connect_tiles: the whole block that reaches in, and
  Run open;   // the whole last block that begins here
};

enum class Step { kAll, kSum, kWrite };

// Shared memory: both numbers of an element with a gap after every chunk, the runs of warps, the open block of a chunk.
constexpr int kThreadBytes = 2 * (kChunk + 1) * int(sizeof(double)) + 2 * int(sizeof(Run));
__device__ __forceinline__ int gapped(int j) { return j + j / kChunk; }

__global__ void __launch_bounds__(tuning::kPoolThreads, 1)
    multiply_blocks(const __grid_constant__ BlockProductArgs args, const __grid_constant__ RowPlan plan, Step step,
                    TileRuns* tiles) {
  const RowTeam team(plan);
  const int size = team.size(), rank = team.rank(), column = rank / plan.group, chunk = rank % plan.group;
  char* memory = shared_memory<char>(team.in_block() * size * kThreadBytes);
  Run* open = reinterpret_cast<Run*>(memory);  // a chunk's last block, complete
  Run* warps = open + size;
  double* first = reinterpret_cast<double*>(warps + size);
  double* second = first + size * (kChunk + 1);
  const bool weighs = args.product == BlockProduct::kMean || args.product == BlockProduct::kResidual;
  const bool times_weight = args.product == BlockProduct::kTransposed || args.product == BlockProduct::kResidual;
  const int64_t words = (plan.n + kChunk - 1) / kChunk;
  for (int64_t number = team.first(); number < plan.work_items; number += team.step()) {
    const WorkItem work(plan, args.shape, number);
    {
      const StridedIndex v(args.v.strides, args.shape, plan, work), w(args.weight.strides, args.shape, plan, work);
      const StridedIndex order(args.order_strides, args.shape, plan, work);
      for_places(plan, team, plan.share, [&](int c, int j) {
        double value = 0, weight = 0;
        if (c < work.columns && j < work.count) {
          const int64_t at = work.begin + j, place = args.order ? load_place(args.order + order(c, at), plan.n) : at;
          value = load_double(args.v.data, v(c, args.v.ordered ? place : at), args.dtype);
          weight = 1;
          if (args.weight.data)
            weight = load_double(args.weight.data, w(c, args.weight.ordered ? place : at), args.dtype);
        }
        first[gapped(c * plan.share + j)] = value;
        second[gapped(c * plan.share + j)] = weight;
      });
    }
    team.barrier();

    const int chunks = (work.count + kChunk - 1) / kChunk;
    const bool live = column < work.columns && chunk < chunks;
    const Blocks* blocks = args.blocks + (work.vector + column) * words;
    const unsigned starts = live ? blocks[work.begin / kChunk + chunk] : 0;
    const int count = live ? (work.count - chunk * kChunk < kChunk ? work.count - chunk * kChunk : kChunk) : 0;
    const int slot = rank * (kChunk + 1);
    Run head{0, 0, kNobody}, tail{0, 0, kNobody};  // before the first block that begins here; the last one
    for (int i = 0; i < count; ++i) {
      if (starts >> i & 1) {
        if (tail.owner == kNobody) head = tail;
        tail = {0, 0, chunk};
      }
      tail.v += weighs ? first[slot + i] * second[slot + i] : first[slot + i];
      tail.weight += second[slot + i];
    }

    // What of the block that reaches in lies before this chunk.
    const int lanes = plan.group < kWarpSize ? plan.group : kWarpSize;
    Run sum = scan_lanes(tail, lanes), before = run_from_lane(sum, lane_id() > 0 ? lane_id() - 1 : 0);
    if (chunk % lanes == 0) before = {0, 0, kNobody};
    if (plan.group > kWarpSize) {
      if (lane_id() == kWarpSize - 1) warps[warp_id()] = sum;
      block_barrier();
      Run earlier{0, 0, kNobody};
      for (int i = 0; i < warp_id(); ++i) earlier = join(earlier, warps[i]);
      before = join(earlier, before);
      sum = join(earlier, sum);
    }
    TileRuns* tile = tiles ? tiles + work.vector * plan.tiles + work.tile : nullptr;
    const bool closes = starts != 0, is_last = live && chunk == chunks - 1;
    Run whole = join(before, head);  // where a block begins here: the one that reaches in
    if (step == Step::kSum) {
      if (closes && before.owner == kNobody) tile->head = whole;
      if (is_last && sum.owner == kNobody) tile->head = sum;
      if (is_last) tile->tail = sum;
    } else {
      Run* opened = open + column * plan.group;
      if (closes && before.owner != kNobody) opened[before.owner] = whole;
      if (is_last && sum.owner != kNobody) opened[sum.owner] = step == Step::kWrite ? tile->open : sum;
      team.barrier();
      if (before.owner != kNobody)
        whole = opened[before.owner];
      else if (step == Step::kWrite)
        whole = tile->carry;
      // The results take the place of v.
      double ratio = whole.v / whole.weight, total = whole.weight;
      unsigned left = starts;
      // Before each turn ratio and total are those of the block that holds the element before, and `left` has the
      // starts from element i on.
      for (int i = 0; i < count; ++i) {
        if (starts >> i & 1) {
          left &= left - 1;
          Run block{0, 0, chunk};
          if (left == 0)
            block = opened[chunk];
          else
            for (int k = i, end = lowest_bit(left); k < end; ++k) {
              block.v += weighs ? first[slot + k] * second[slot + k] : first[slot + k];
              block.weight += second[slot + k];
            }
          ratio = block.v / block.weight;
          total = block.weight;
        }
        double result = ratio;
        // The mean of one element is that element, which w v / w would miss by rounding.
        if (args.product == BlockProduct::kResidual)
          result = first[slot + i] - (total == second[slot + i] ? first[slot + i] : ratio);
        if (times_weight) result *= second[slot + i];
        first[slot + i] = result;
      }
      team.barrier();
      const StridedIndex out(args.out.strides, args.shape, plan, work),
          order(args.order_strides, args.shape, plan, work);
      for_places(plan, team, plan.share, [&](int c, int j) {
        if (c >= work.columns || j >= work.count) return;
        const int64_t at = work.begin + j;
        const int64_t place = args.order && args.out.ordered ? load_place(args.order + order(c, at), plan.n) : at;
        const bool regular = args.blocks[(work.vector + c) * words] & 1;
        store_double(args.out.data, out(c, place), args.dtype,
                     regular ? args.scale * first[gapped(c * plan.share + j)] : kInfinity<double> - kInfinity<double>);
      });
    }
    team.barrier();
  }
}

// A warp per vector goes over its tiles.
__global__ void __launch_bounds__(tuning::kPassThreads) connect_tiles(TileRuns* tiles, int64_t vectors, int64_t count) {
  for (int64_t vector = int64_t(blockIdx.x) * warp_count() + warp_id(); vector < vectors;
       vector += int64_t(gridDim.x) * warp_count()) {
    TileRuns* own = tiles + vector * count;
    // Before each turn `carry` is the last block that begins in front of tile `begin`, summed up to there. For every
    // block that ends in front of it, `open` of the tile where it begins is complete.
    Run carry{0, 0, kNobody};
    for (int64_t begin = 0; begin < count; begin += kWarpSize) {
      const int64_t t = begin + lane_id();
      const bool exists = t < count;
      Run run{0, 0, kNobody}, head{0, 0, kNobody};
      if (exists) {
        run = own[t].tail;
        head = own[t].head;
        if (run.owner != kNobody) run.owner = int(t);
      }
      const bool closes = run.owner != kNobody;
      const Run sum = scan_lanes(run, kWarpSize);
      Run before = run_from_lane(sum, lane_id() > 0 ? lane_id() - 1 : 0);
      before = lane_id() == 0 ? carry : join(carry, before);
      const Run total = join(carry, sum);
      if (exists) own[t].carry.owner = before.owner;
      if (closes && before.owner != kNobody) own[before.owner].open = join(before, head);
      if (exists && t == count - 1 && total.owner != kNobody) own[total.owner].open = total;
      carry = run_from_lane(total, kWarpSize - 1);
    }
    warp_barrier();
    for (int64_t t = lane_id(); t < count; t += kWarpSize)
      if (own[t].carry.owner != kNobody) {
        own[t].carry.v = own[own[t].carry.owner].open.v;
        own[t].carry.weight = own[own[t].carry.owner].open.weight;
      }
    warp_barrier();
  }
}

RowPlan plan_of(BlockProductArgs& args) {
  Layout layout(args.shape, args.dtype,
                {{args.v.data, &args.v.strides},
                 {args.weight.data, &args.weight.strides, false},
                 {args.out.data, &args.out.strides},
                 {args.order, &args.order_strides, false}});
  const Problem problem = layout.problem(0);
  if (problem.n >= int64_t(1) << 31)
    throw std::invalid_argument("block_product on CUDA takes vectors of fewer than 2^31 elements, got " +
                                std::to_string(problem.n));
  return RowPlan(problem, device_limits(), kChunk, kThreadBytes, tuning::kPoolThreads, tuning::kPoolTileThreads);
}

}  // namespace

size_t block_product_workspace(const BlockProductArgs& call) {
  BlockProductArgs args = call;
  if (empty(args.shape)) return 0;
  const RowPlan plan = plan_of(args);
  if (plan.regime != Regime::kGrid) return 0;
  return size_t(plan.vectors(args.shape)) * size_t(plan.tiles) * sizeof(TileRuns);
}

void block_product(const BlockProductArgs& call, void* workspace, void* stream) {
  BlockProductArgs args = call;
  if (empty(args.shape)) return;
  const RowPlan plan = plan_of(args);
  TileRuns* tiles = static_cast<TileRuns*>(workspace);
  auto multiply = [&](Step step, TileRuns* runs) {
    launch(plan.launch_plan(), stream, "block_product", multiply_blocks, args, plan, step, runs);
  };
  if (plan.regime != Regime::kGrid) return multiply(Step::kAll, nullptr);
  const int64_t vectors = plan.vectors(args.shape);
  const Plan warps = RowPlan::launch_of(ceil_div(vectors, tuning::kPassThreads / 32), tuning::kPassThreads, 0);
  multiply(Step::kSum, tiles);
  launch(warps, stream, "block_product", connect_tiles, tiles, vectors, plan.tiles);
  multiply(Step::kWrite, tiles);
}

}  // namespace cuda
}  // namespace hypersimplex
