// Isotonic regression by pooling adjacent violators, pool.cuh. Lanes of a warp or a block hold a vector in shared
// memory, a chunk per thread; of a longer one blocks pool tiles, which further launches join in global memory, level by
// level.
#include "gaps.cuh"

namespace hypersimplex {
namespace cuda {
namespace {

constexpr int kPassThreads = tuning::kPassThreads;

// What a thread, which has a chunk, keeps in shared memory: its masses with the gap, Pieces' arrays, and room for the
// seams that several warps close.
__host__ __device__ constexpr int thread_bytes(bool counts) {
  return (kChunkElements + 1) * int(sizeof(double)) * (counts ? 1 : 2) + 2 * int(sizeof(Mass)) + 4 * int(sizeof(int));
}
static_assert(sizeof(Seam) <= 64 * sizeof(int), "a seam for every two warps");

__host__ __device__ inline bool counts(const IsotonicArgs& args) {
  return args.divergence == Divergence::kL2 && !args.weight;
}

// A team's shared memory, seen by those of its threads that serve one column.
__device__ __forceinline__ Pieces<true> pieces_of(const RowPlan& plan, const RowTeam& team, bool counts, int column,
                                                  int n) {
  const int size = team.size(), chunk = column * plan.group;
  double* first = shared_memory<double>(team.in_block() * size * thread_bytes(counts));
  double* second = counts ? nullptr : first + size * (kChunkElements + 1);
  Mass* masses = reinterpret_cast<Mass*>((counts ? first : second) + size * (kChunkElements + 1));
  uint32_t* words = reinterpret_cast<uint32_t*>(masses + 2 * size);
  int* places = reinterpret_cast<int*>(words + size);
  const int slot = chunk * (kChunkElements + 1);
  return {first + slot,          counts ? nullptr : second + slot,
          words + chunk,         places + chunk,
          places + size + chunk, masses + chunk,
          masses + size + chunk, n};
}
__device__ __forceinline__ Seam* seams_of(const RowTeam& team, bool counts) {
  return shared_memory<Seam>(team.size() * (thread_bytes(counts) - int(sizeof(int))));
}

// Long vectors, in the workspace; their words are the caller's.
struct LongVectors {
  int64_t vectors, chunks, most_seams;
  Seam* seams;             // [vectors, most_seams]
  Mass* masses;            // [vectors, chunks] before, then after
  double *first, *second;  // [vectors, chunks * 32]
  int* places;             // [vectors, chunks] reaching, then ending
  int* irregular;          // [vectors]
  size_t bytes;

  LongVectors(const IsotonicArgs& args, const RowPlan& plan, bool counts, void* workspace) {
    vectors = plan.vectors(args.shape);
    chunks = ceil_div(plan.n, kChunkElements);
    most_seams = plan.tiles / 2;
    char* at = static_cast<char*>(workspace);
    auto take = [&](auto*& array, int64_t count) {
      array = reinterpret_cast<std::decay_t<decltype(array)>>(at);
      at += size_t(count) * sizeof(*array);
    };
    take(seams, vectors * most_seams);
    take(masses, 2 * vectors * chunks);
    take(first, vectors * chunks * kChunkElements);
    take(second, counts ? 0 : vectors * chunks * kChunkElements);
    take(places, 2 * vectors * chunks);
    take(irregular, vectors);
    if (counts) second = nullptr;
    bytes = size_t(at - static_cast<char*>(workspace));
  }
  __device__ Pieces<false> pieces(Blocks* blocks, int64_t vector, int n) const {
    const int64_t chunk = vector * chunks, all = vectors * chunks, element = chunk * kChunkElements;
    return {first + element,      second ? second + element : nullptr,
            blocks + chunk,       places + chunk,
            places + all + chunk, masses + chunk,
            masses + all + chunk, n};
  }
};

// Reads elements, and writes what the caller asked for.
class Elements {
 public:
  __device__ Elements(const IsotonicArgs& args, const RowPlan& plan, const WorkItem& work, const Gaps& gaps)
      : args_(args),
        n_(plan.n),
        terms_(args, plan, work, gaps),
        weight_(args.weight_strides, args.shape, plan, work),
        out_(args.out_strides, args.shape, plan, work),
        order_(args.order_strides, args.shape, plan, work),
        share_(args.share_strides, args.shape, plan, work) {}

  template <class Kind>
  __device__ __forceinline__ Mass load(int column, int64_t j) const {
    double weight = args_.weight ? load_double(args_.weight, weight_(column, j), args_.dtype) : 1;
    if (!(weight > 0)) weight = kInfinity<double>;  // as good as any number that makes the vector nan
    const Mass mass = Kind::of(terms_.a(column, j), terms_.b_pooled(column, j), weight);
    return args_.increasing ? Mass{-mass.first, mass.second} : mass;
  }
  // `alone`: the block holds no other element, so that v = a - b.
  template <class Kind>
  __device__ __forceinline__ void store(int column, int64_t j, Mass block, bool alone, bool regular) const {
    double v = Kind::value(block);
    if (args_.increasing) v = -v;
    if (args_.share) v -= terms_.b_origin(column);
    if (args_.result != IsotonicResult::kRegression) v = alone ? terms_.b(column, j) : terms_.a(column, j) - v;
    if (args_.result == IsotonicResult::kExpPrimal) v = exp(v);
    const double nan = kInfinity<double> - kInfinity<double>;
    const int64_t place = args_.order ? load_place(args_.order + order_(column, j), n_) : j;
    store_double(args_.out, out_(column, place), args_.dtype, regular ? args_.scale * v : nan);
    if (args_.share)
      store_double(args_.share, share_(column, j), args_.dtype,
                   regular ? exp(terms_.b_pooled(column, j) - block.second) : nan);
  }

 private:
  const IsotonicArgs& args_;
  const int64_t n_;
  const Terms terms_;
  const StridedIndex weight_, out_, order_, share_;
};

// Vectors from their elements to the results or, where they are long, tiles of them into the workspace.
template <class Kind>
__global__ void __launch_bounds__(tuning::kPoolThreads)
    pool_tiles(const __grid_constant__ IsotonicArgs args, const __grid_constant__ RowPlan plan,
               const __grid_constant__ LongVectors into, const __grid_constant__ Gaps gaps) {
  const RowTeam team(plan);
  const bool long_vectors = plan.regime == Regime::kGrid;
  const int column = team.rank() / plan.group, chunk = team.rank() % plan.group;
  for (int64_t number = team.first(); number < plan.work_items; number += team.step()) {
    const WorkItem work(plan, args.shape, number);
    const bool live = column < work.columns;
    const Pieces<true> own = pieces_of(plan, team, counts(args), column, work.count);
    const int chunks = (work.count + kChunkElements - 1) / kChunkElements;
    {
      const Elements elements(args, plan, work, gaps);
      for_places(plan, team, plan.share, [&](int c, int j) {
        const bool exists = c < work.columns && j < work.count;
        pieces_of(plan, team, counts(args), c, work.count)
            .put(j, exists ? elements.load<Kind>(c, work.begin + j) : Kind::nothing());
      });
    }
    team.barrier();
    const bool finite = pool_chunk<Kind>(own, chunk) || !live;
    const unsigned irregular = team.size() == kWarpSize ? lanes_where(!finite) : any_thread(!finite) ? kAllLanes : 0;
    const unsigned lanes_of_column = plan.group < kWarpSize ? (1u << plan.group) - 1 : kAllLanes;
    auto regular = [&](int c) { return (irregular >> c * (plan.group & (kWarpSize - 1)) & lanes_of_column) == 0; };
    team.barrier();

    // Before each turn pieces of `run` chunks are monotone; the turn joins them two by two.
    for (int run = 1; run < plan.group; run *= 2) {
      const int left = chunk & ~(2 * run - 1), middle = left + run;
      const int right = left + 2 * run < chunks ? left + 2 * run : chunks;
      const bool exists = live && regular(column) && middle < chunks;
      const bool by_warps = 2 * run > kWarpSize;  // several close a seam, of which one finds it
      if (by_warps) block_barrier();
      Seam seam{};
      if (!by_warps || chunk - left < kWarpSize)
        seam = find_seam<Kind>(own, left, middle, right, by_warps ? kWarpSize : 2 * run, exists);
      if (by_warps) {
        Seam* const shared = seams_of(team, counts(args)) + left / (2 * run);
        if (chunk - left < kWarpSize && lane_id() == 0) *shared = seam;
        block_barrier();
        seam = *shared;
      } else {
        warp_barrier();
      }
      if (exists && chunk < chunks) close_seam<Kind>(own, seam, middle, right, chunk);
      if (!by_warps) warp_barrier();
    }
    team.barrier();

    if (live && chunk < chunks) {
      const int64_t all_chunks = (plan.n + kChunkElements - 1) / kChunkElements;
      const int64_t at = (work.vector + column) * all_chunks + work.begin / kChunkElements + chunk;
      args.blocks[at] = regular(column) ? own.words[chunk] : 0;
      if (long_vectors) {
        const Pieces<false> to = into.pieces(args.blocks, work.vector, int(plan.n));
        const int c = int(work.begin) / kChunkElements + chunk;
        to.reaching[c] = own.reaching[chunk] + int(work.begin);
        to.ending[c] = own.ending[chunk] + int(work.begin);
        to.before[c] = own.before[chunk];
        to.after[c] = own.after[chunk];
        if (chunk == 0 && !regular(0)) into.irregular[work.vector] = 1;
      }
    }
    if (long_vectors) {
      const Pieces<false> to = into.pieces(args.blocks, work.vector, int(plan.n));
      for (int j = team.rank(); j < chunks * kChunkElements; j += team.size()) {
        to.first[work.begin + j] = own.first[own.slot(j)];
        if (to.second) to.second[work.begin + j] = own.second[own.slot(j)];
      }
    } else {
      const Elements elements(args, plan, work, gaps);
      for_places(plan, team, plan.share, [&](int c, int j) {
        if (c >= work.columns || j >= work.count) return;
        const Pieces<true> pieces = pieces_of(plan, team, counts(args), c, work.count);
        elements.store<Kind>(c, j, pieces.mass_at(j), pieces.alone(j), regular(c));
      });
    }
    team.barrier();
  }
}

// The seams between pieces of `run` chunks, a warp each.
template <class Kind>
__global__ void __launch_bounds__(kPassThreads)
    find_seams(const __grid_constant__ IsotonicArgs args, const __grid_constant__ LongVectors vectors, int n, int run,
               int seams) {
  const int64_t step = int64_t(gridDim.x) * warp_count();
  for (int64_t number = int64_t(blockIdx.x) * warp_count() + warp_id(); number < vectors.vectors * seams;
       number += step) {
    const int64_t vector = number / seams, i = number - vector * seams;
    const int64_t left = i * 2 * run, right = left + 2 * run < vectors.chunks ? left + 2 * run : vectors.chunks;
    const Seam seam = find_seam<Kind>(vectors.pieces(args.blocks, vector, n), int(left), int(left + run), int(right),
                                      kWarpSize, vectors.irregular[vector] == 0);
    if (lane_id() == 0) vectors.seams[vector * vectors.most_seams + i] = seam;
  }
}

template <class Kind>
__global__ void __launch_bounds__(kPassThreads)
    close_seams(const __grid_constant__ IsotonicArgs args, const __grid_constant__ LongVectors vectors, int n, int run,
                int seams) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t number = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; number < vectors.vectors * vectors.chunks;
       number += step) {
    const int64_t vector = number / vectors.chunks, chunk = number - vector * vectors.chunks, i = chunk / run / 2;
    if (i >= seams || vectors.irregular[vector]) continue;
    const int64_t middle = i * 2 * run + run, right = middle + run < vectors.chunks ? middle + run : vectors.chunks;
    close_seam<Kind>(vectors.pieces(args.blocks, vector, n), vectors.seams[vector * vectors.most_seams + i],
                     int(middle), int(right), int(chunk));
  }
}

template <class Kind>
__global__ void __launch_bounds__(kPassThreads, 1)
    write_tiles(const __grid_constant__ IsotonicArgs args, const __grid_constant__ RowPlan plan,
                const __grid_constant__ LongVectors vectors, const __grid_constant__ Gaps gaps) {
  const RowTeam team(plan);
  for (int64_t number = team.first(); number < plan.work_items; number += team.step()) {
    const WorkItem work(plan, args.shape, number);
    const Pieces<false> pieces = vectors.pieces(args.blocks, work.vector, int(plan.n));
    const Elements elements(args, plan, work, gaps);
    const bool regular = vectors.irregular[work.vector] == 0;
    for (int j = team.rank(); j < work.count; j += team.size()) {
      const int64_t at = work.begin + j;
      elements.store<Kind>(0, at, regular ? pieces.mass_at(int(at)) : Kind::nothing(), pieces.alone(int(at)), regular);
    }
  }
}

// The words of vectors that are not regular.
__global__ void __launch_bounds__(kPassThreads)
    clear_blocks(const __grid_constant__ IsotonicArgs args, const __grid_constant__ LongVectors vectors) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < vectors.vectors * vectors.chunks; at += step)
    if (vectors.irregular[at / vectors.chunks]) args.blocks[at] = 0;
}

RowPlan plan_of(IsotonicArgs& args) {
  Layout layout(args.shape, args.dtype,
                {{args.a.data, &args.a.strides},
                 {args.b.data, &args.b.strides, false},
                 {args.weight, &args.weight_strides, false},
                 {args.out, &args.out_strides, !args.order},
                 {args.order, &args.order_strides, false},
                 {args.share, &args.share_strides}});
  const Problem problem = layout.problem(0);
  if (problem.n > (int64_t(1) << 31) - 2 * kChunkElements)  // places are ints, ends of chunks among them
    throw std::invalid_argument("isotonic on CUDA takes vectors of at most 2^31 - 64 elements, got " +
                                std::to_string(problem.n));
  return RowPlan(problem, device_limits(), kChunkElements, thread_bytes(counts(args)), tuning::kPoolThreads,
                 tuning::kPoolTileThreads);
}

size_t bytes_of_long(const LongVectors& vectors, const RowPlan& plan) {
  return plan.regime == Regime::kGrid ? (vectors.bytes + 7) / 8 * 8 : 0;
}

template <class Kind>
void pool(const IsotonicArgs& args, const RowPlan& plan, const LongVectors& vectors, const Gaps& gaps, void* stream) {
  const bool is_long = plan.regime == Regime::kGrid;
  if (is_long)
    check(
        cudaMemsetAsync(vectors.irregular, 0, size_t(vectors.vectors) * sizeof(int), static_cast<cudaStream_t>(stream)),
        "cudaMemsetAsync");
  launch(plan.launch_plan(), stream, "isotonic", pool_tiles<Kind>, args, plan, vectors, gaps);
  if (!is_long) return;
  const int n = int(plan.n);
  const Plan per_chunk = RowPlan::launch_of(ceil_div(vectors.vectors * vectors.chunks, kPassThreads), kPassThreads, 0);
  // Before each turn pieces of `run` chunks are monotone; the turn joins them two by two.
  for (int64_t run = plan.group; run < vectors.chunks; run *= 2) {
    const int64_t seams = ceil_div(vectors.chunks - run, 2 * run);
    const int64_t blocks = ceil_div(vectors.vectors * seams, kPassThreads / kWarpSize);
    launch(RowPlan::launch_of(blocks, kPassThreads, 0), stream, "isotonic", find_seams<Kind>, args, vectors, n,
           int(run), int(seams));
    launch(per_chunk, stream, "isotonic", close_seams<Kind>, args, vectors, n, int(run), int(seams));
  }
  Plan writing = plan.launch_plan();
  writing.shared_bytes = 0;
  launch(writing, stream, "isotonic", write_tiles<Kind>, args, plan, vectors, gaps);
  launch(per_chunk, stream, "isotonic", clear_blocks, args, vectors);
}

template <class Kind>
void regress(const IsotonicArgs& args, const RowPlan& plan, void* workspace, void* stream) {
  const LongVectors vectors(args, plan, counts(args), workspace);
  const Gaps gaps(args, plan.vectors(args.shape), plan.n, static_cast<char*>(workspace) + bytes_of_long(vectors, plan));
  const RowPlan by_vector = vector_by_vector(plan);
  if (gaps.widest)
    launch(RowPlan::launch_of(gaps.vectors, kPassThreads, 0), stream, "isotonic", measure_gaps, args, by_vector, gaps);
  pool<Kind>(args, plan, vectors, gaps, stream);
  if (gaps.widest)
    launch(RowPlan::launch_of(ceil_div(gaps.vectors * gaps.chunks, kPassThreads / kWarpSize), kPassThreads, 0), stream,
           "isotonic", write_by_differences, args, by_vector, gaps);
}

}  // namespace

size_t isotonic_workspace(const IsotonicArgs& call) {
  IsotonicArgs args = call;
  if (empty(args.shape)) return 0;
  const RowPlan plan = plan_of(args);
  return bytes_of_long(LongVectors(args, plan, counts(args), nullptr), plan) +
         Gaps(args, plan.vectors(args.shape), plan.n, nullptr).bytes(args);
}

void isotonic(const IsotonicArgs& call, void* workspace, void* stream) {
  IsotonicArgs args = call;
  if (empty(args.shape)) return;
  const RowPlan plan = plan_of(args);
  if (args.divergence == Divergence::kL2)
    regress<Means>(args, plan, workspace, stream);
  else
    regress<LogSums>(args, plan, workspace, stream);
}

}  // namespace cuda
}  // namespace hypersimplex
