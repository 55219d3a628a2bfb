// Stable sort of every vector, by merging. A thread sorts a few entries in its registers; threads of a team, by merge
// paths, merge runs through shared memory, each thread as many entries of the result as it began with; tiles of longer
// vectors are merged by further launches, each block one tile of the result.
//
// An entry is a key, an unsigned number that orders as torch.sort does, and below it the entry's place: no two are
// equal, so that any sort is stable.
#include "rows.cuh"

namespace hypersimplex {
namespace cuda {
namespace {

// Entries of types that are compared in float32, in one number; and those of float64.
using Packed = uint64_t;
struct alignas(16) Wide {
  uint64_t key;
  uint32_t place;
};

// Entries of a thread. In shared memory a gap follows them: lanes that each write their own then seldom hit the
// same bank.
template <class Entry>
constexpr int kItems = tuning::kShortBytes / int(sizeof(Entry));
template <class Entry>
constexpr int kThreadBytes = (kItems<Entry> + 1) * int(sizeof(Entry));
template <class Entry>
__device__ __forceinline__ int gapped(int i) {
  return i + i / kItems<Entry>;
}

__device__ __forceinline__ bool before(Packed a, Packed b) { return a < b; }
__device__ __forceinline__ bool before(const Wide& a, const Wide& b) {
  return a.key != b.key ? a.key < b.key : a.place < b.place;
}
__device__ __forceinline__ uint32_t place_of(Packed e) { return uint32_t(e); }
__device__ __forceinline__ uint32_t place_of(const Wide& e) { return e.place; }

// nan above every number, -0 as 0; all bits turned where the order descends.
template <class Bits, class T>
__device__ __forceinline__ Bits key_of(T v, bool descending) {
  constexpr Bits kSign = Bits(1) << (sizeof(Bits) * 8 - 1);
  Bits key = ~Bits(0);
  if (v == v) {
    v += T(0);
    memcpy(&key, &v, sizeof v);
    key = key & kSign ? ~key : key ^ kSign;
  }
  return descending ? ~key : key;
}
// The number with this key; false for nan and 0, of which there are several.
template <class Bits, class T>
__device__ __forceinline__ bool number_of(Bits key, bool descending, T& v) {
  constexpr Bits kSign = Bits(1) << (sizeof(Bits) * 8 - 1);
  if (descending) key = ~key;
  const Bits bits = key & kSign ? key ^ kSign : ~key;
  memcpy(&v, &bits, sizeof v);
  return key != ~Bits(0) && key != kSign;
}

__device__ __forceinline__ void load_entry(const SortArgs& args, int64_t at, uint32_t place, Packed& e) {
  e = uint64_t(key_of<uint32_t>(load_float(args.x, at, args.dtype), args.descending)) << 32 | place;
}
__device__ __forceinline__ void load_entry(const SortArgs& args, int64_t at, uint32_t place, Wide& e) {
  e = {key_of<uint64_t>(load_constant(static_cast<const double*>(args.x) + at), args.descending), place};
}
// Behind all entries.
__device__ __forceinline__ void set_last(Packed& e) { e = ~uint64_t(0); }
__device__ __forceinline__ void set_last(Wide& e) { e = {~uint64_t(0), ~uint32_t(0)}; }

// Stores entries as what the caller asked for.
class Results {
 public:
  __device__ Results(const SortArgs& args, const RowPlan& plan, const WorkItem& work)
      : args_(args),
        x_(args.x_strides, args.shape, plan, work),
        values_(args.values_strides, args.shape, plan, work),
        order_(args.order_strides, args.shape, plan, work) {}

  template <class Entry>
  __device__ __forceinline__ void store(int column, int64_t j, const Entry& e) const {
    if (args_.values && !store_value(values_(column, j), e))
      copy_number(args_.x, x_(column, place_of(e)), args_.values, values_(column, j), args_.dtype);
    if (!args_.order) return;
    if (args_.wide_order)
      static_cast<int64_t*>(args_.order)[order_(column, j)] = place_of(e);
    else
      static_cast<int32_t*>(args_.order)[order_(column, j)] = int32_t(place_of(e));
  }

 private:
  __device__ __forceinline__ bool store_value(int64_t at, Packed e) const {
    float v;
    if (!number_of(uint32_t(e >> 32), args_.descending, v)) return false;
    store_float(args_.values, at, args_.dtype, v);
    return true;
  }
  __device__ __forceinline__ bool store_value(int64_t at, const Wide& e) const {
    double v;
    if (!number_of(e.key, args_.descending, v)) return false;
    static_cast<double*>(args_.values)[at] = v;
    return true;
  }

  const SortArgs& args_;
  const StridedIndex x_, values_, order_;
};

// A bitonic network over the items of a thread.
template <class Entry>
__device__ __forceinline__ void sort_items(Entry (&items)[kItems<Entry>]) {
  constexpr int N = kItems<Entry>;
  // Before each turn of the outer loop runs of size / 2 items are in order, ascending and descending by turns; the
  // inner loops merge two of them each.
#pragma unroll
  for (int size = 2; size <= N; size *= 2)
#pragma unroll
    for (int stride = size / 2; stride > 0; stride /= 2)
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const int other = i ^ stride;
        if (other < i) continue;
        const Entry a = items[i], b = items[other];
        const bool swap = before(b, a) == ((i & size) == 0);
        items[i] = swap ? b : a;
        items[other] = swap ? a : b;
      }
}

// Of two sorted runs in shared memory, `a_count` entries from place `a` on and `b_count` from `b` on, the entries from
// number `from` on, as many as there are items.
template <class Entry>
__device__ __forceinline__ void merge_items(const Entry* memory, int a, int a_count, int b, int b_count, int from,
                                            Entry (&items)[kItems<Entry>]) {
  int low = from < b_count ? 0 : from - b_count, high = from < a_count ? from : a_count;
  // Of the entries before number `from`, at least `low` and at most `high` come from a; each turn halves the range.
  while (low < high) {
    const int p = (low + high) / 2;
    if (before(memory[gapped<Entry>(b + from - 1 - p)], memory[gapped<Entry>(a + p)]))
      high = p;
    else
      low = p + 1;
  }
  int i = a + low, j = b + from - low;
  const int a_end = a + a_count, b_end = b + b_count;
  Entry next_a, next_b;
  set_last(next_a);
  set_last(next_b);
  if (i < a_end) next_a = memory[gapped<Entry>(i)];
  if (j < b_end) next_b = memory[gapped<Entry>(j)];
  // Before each turn next_a and next_b are entries i and j, the first that are left of both runs.
#pragma unroll
  for (Entry& item : items) {
    const bool take_b = before(next_b, next_a);
    item = take_b ? next_b : next_a;
    const int next = take_b ? ++j : ++i;
    Entry head;  // a value: a reference to either would put both into local memory
    set_last(head);
    if (next < (take_b ? b_end : a_end)) head = memory[gapped<Entry>(next)];
    next_a = take_b ? next_a : head;
    next_b = take_b ? head : next_b;
  }
}

template <class Entry>
__device__ __forceinline__ void put_items(Entry* memory, int first, const Entry (&items)[kItems<Entry>]) {
#pragma unroll
  for (int i = 0; i < kItems<Entry>; ++i) memory[gapped<Entry>(first + i)] = items[i];
}

// Sorts vectors or, where `runs` is given, tiles of them into it: [vectors, n].
template <class Entry>
__global__ void __launch_bounds__(tuning::kSortThreads)
    sort_tiles(const __grid_constant__ SortArgs args, const __grid_constant__ RowPlan plan, Entry* runs) {
  constexpr int N = kItems<Entry>;
  const RowTeam team(plan);
  Entry* memory = shared_memory<Entry>(team.in_block() * team.size() * kThreadBytes<Entry>);
  const int width = plan.share, first = team.rank() * N, slot = team.rank() & (plan.group - 1);
  for (int64_t number = team.first(); number < plan.work_items; number += team.step()) {
    const WorkItem work(plan, args.shape, number);
    const StridedIndex x(args.x_strides, args.shape, plan, work);
    for_places(plan, team, width, [&](int column, int j) {
      Entry e;
      set_last(e);
      if (column < work.columns && j < work.count)
        load_entry(args, x(column, work.begin + j), uint32_t(work.begin + j), e);
      memory[gapped<Entry>(column * width + j)] = e;
    });
    team.barrier();
    Entry items[N];
#pragma unroll
    for (int i = 0; i < N; ++i) items[i] = memory[gapped<Entry>(first + i)];
    sort_items(items);
    // Before each turn the items of every `run` neighbouring threads, taken together, are in order.
    for (int run = 1; run < plan.group; run *= 2) {
      put_items(memory, first, items);
      team.barrier();
      const int pair = slot & ~(2 * run - 1), start = first - (slot - pair) * N;
      merge_items(memory, start, run * N, start + run * N, run * N, (slot - pair) * N, items);
      team.barrier();
    }
    put_items(memory, first, items);
    team.barrier();
    const Results results(args, plan, work);
    for_places(plan, team, width, [&](int column, int j) {
      if (column >= work.columns || j >= work.count) return;
      const Entry e = memory[gapped<Entry>(column * width + j)];
      if (runs)
        runs[work.vector * plan.n + work.begin + j] = e;
      else
        results.store(column, j, e);
    });
    team.barrier();
  }
}

// Merges runs of `run` entries, a multiple of a tile, two by two; each block one tile of the result, `to` or, where it
// is null, the caller's.
template <class Entry>
__global__ void __launch_bounds__(tuning::kSortThreads)
    merge_tiles(const __grid_constant__ SortArgs args, const __grid_constant__ RowPlan plan, int64_t run,
                const Entry* from, Entry* to) {
  const RowTeam team(plan);
  int64_t* split = shared_memory<int64_t>(0);
  Entry* memory = shared_memory<Entry>(kPackBytes);
  for (int64_t number = team.first(); number < plan.work_items; number += team.step()) {
    const WorkItem work(plan, args.shape, number);
    const int64_t pair = work.begin / (2 * run) * (2 * run);
    const int64_t a_count = plan.n - pair < run ? plan.n - pair : run;
    const int64_t b_count = plan.n - pair - a_count < run ? plan.n - pair - a_count : run;
    const Entry *a = from + work.vector * plan.n + pair, *b = a + a_count;
    if (warp_id() < 2) {  // one finds where in both runs the tile begins, one where it ends
      const int64_t at = work.begin - pair + (warp_id() == 0 ? 0 : work.count);
      const int64_t low = at < b_count ? 0 : at - b_count, high = at < a_count ? at : a_count;
      const int64_t taken = first_where(low, high, kWarpSize, [&](int64_t p) { return before(b[at - 1 - p], a[p]); });
      if (lane_id() == 0) split[warp_id()] = taken;
    }
    block_barrier();
    const int64_t a_begin = split[0], b_begin = work.begin - pair - a_begin;
    const int a_size = int(split[1] - a_begin), b_size = work.count - a_size;
    for (int i = team.rank(); i < work.count; i += team.size())
      memory[gapped<Entry>(i)] = i < a_size ? a[a_begin + i] : b[b_begin + i - a_size];
    block_barrier();
    const int first = team.rank() * kItems<Entry>;
    Entry items[kItems<Entry>];
    merge_items(memory, 0, a_size, a_size, b_size, first < work.count ? first : work.count, items);
    block_barrier();
    put_items(memory, first, items);
    block_barrier();
    const Results results(args, plan, work);
    for (int i = team.rank(); i < work.count; i += team.size()) {
      const Entry e = memory[gapped<Entry>(i)];
      if (to)
        to[work.vector * plan.n + work.begin + i] = e;
      else
        results.store(0, work.begin + i, e);
    }
    block_barrier();
  }
}

RowPlan plan_of(SortArgs& args) {
  Layout layout(args.shape, args.dtype,
                {{args.x, &args.x_strides},
                 {args.values, &args.values_strides},
                 {args.order, &args.order_strides, args.values == nullptr}});
  const Problem problem = layout.problem(0);
  if (problem.n >= int64_t(1) << 32)
    throw std::invalid_argument("sort on CUDA takes vectors of fewer than 2^32 entries, got " +
                                std::to_string(problem.n));
  const bool wide = args.dtype == DType::kFloat64;
  return RowPlan(problem, device_limits(), wide ? kItems<Wide> : kItems<Packed>,
                 wide ? kThreadBytes<Wide> : kThreadBytes<Packed>, tuning::kSortThreads, tuning::kSortThreads);
}

template <class Entry>
void sort_as(const SortArgs& args, const RowPlan& plan, void* workspace, void* stream) {
  Plan sizes = plan.launch_plan();
  if (plan.regime != Regime::kGrid)
    return launch(sizes, stream, "sort", sort_tiles<Entry>, args, plan, static_cast<Entry*>(nullptr));
  Entry* from = static_cast<Entry*>(workspace);
  Entry* to = from + plan.vectors(args.shape) * plan.n;
  launch(sizes, stream, "sort", sort_tiles<Entry>, args, plan, plan.tiles == 1 ? nullptr : from);
  sizes.shared_bytes += kPackBytes;
  // Before each turn `from` holds runs of `run` entries, each in order; the last turn writes the caller's results.
  for (int64_t run = plan.share; run < plan.n; run *= 2) {
    launch(sizes, stream, "sort", merge_tiles<Entry>, args, plan, run, static_cast<const Entry*>(from),
           2 * run < plan.n ? to : nullptr);
    std::swap(from, to);
  }
}

}  // namespace

size_t sort_workspace(const SortArgs& call) {
  SortArgs args = call;
  if (empty(args.shape)) return 0;
  const RowPlan plan = plan_of(args);
  if (plan.regime != Regime::kGrid || plan.tiles == 1) return 0;
  const size_t entries = size_t(plan.vectors(args.shape)) * size_t(plan.n);
  return 2 * entries * (args.dtype == DType::kFloat64 ? sizeof(Wide) : sizeof(Packed));
}

void sort(const SortArgs& call, void* workspace, void* stream) {
  SortArgs args = call;
  if (empty(args.shape)) return;
  const RowPlan plan = plan_of(args);
  if (args.dtype == DType::kFloat64)
    sort_as<Wide>(args, plan, workspace, stream);
  else
    sort_as<Packed>(args, plan, workspace, stream);
}

}  // namespace cuda
}  // namespace hypersimplex
