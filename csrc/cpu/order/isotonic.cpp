// Isotonic regression. Pool adjacent violators runs over chunks of a vector; then neighbouring pieces are joined, pair
// by pair, in a tree: each is monotone by itself, so only one block grows across the seam. Blocks of several elements
// are kept where their chunk left them until the results are written; those of one element need no memory.
#include <cmath>
#include <limits>

#include "cpu/launchers.h"
#include "cpu/order/isotonic_terms.h"
#include "cpu/order/pav.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

constexpr double kNarrow = 600;  // how far exponentials may go below the first: exp(-600) leaves room for quotients

template <class In>
struct Vector {
  int64_t n;
  Term<In> a, b;
  const In* weight;
  double sign;  // -1 for an increasing regression
  IsotonicResult result;
  double scale;
  const int32_t* order;
  In *out, *share;
  Blocks* blocks;
  bool entropic;                    // KL
  double a_first = 0, b_first = 0;  // KL in exponentials

  // Whether KL can be had in exponentials, which are relative to the first elements from then on.
  bool narrow() {
    a_first = a.at(0);
    b_first = b.at(0);
    return a_first - a.at(n - 1) <= kNarrow && b_first - b.at(n - 1) <= kNarrow;
  }

  // p and q of elements; false where one of them is a nan or an infinity, or a weight not in (0, inf).
  bool evaluate(const MeanBlock*, int64_t begin, int64_t count, double* p, double* q) const {
    if (entropic) {
      a.exponentials(begin, count, a_first, p);
      b.exponentials(begin, count, b_first, q);
      for (int64_t j = 0; j < count; ++j) p[j] /= q[j];
      return positive(p, count) && positive(q, count);
    }
    evaluate_terms(begin, count, p, q);
    for (int64_t j = 0; j < count; ++j) p[j] = sign * (p[j] - q[j]);
    if (weight)
      for (int64_t j = 0; j < count; ++j) q[j] = load(weight[begin + j]);
    else
      std::fill(q, q + count, 1.0);
    return finite(p, count) && (!weight || positive(q, count));
  }
  bool evaluate(const LogBlock*, int64_t begin, int64_t count, double* p, double* q) const {
    evaluate_terms(begin, count, p, q);
    return finite(p, count) && finite(q, count);
  }

 private:
  void evaluate_terms(int64_t begin, int64_t count, double* p, double* q) const {
    a.evaluate(begin, count, p);
    b.evaluate(begin, count, q);
  }
  static bool finite(const double* p, int64_t count) {
    int64_t strange = 0;
    for (int64_t j = 0; j < count; ++j) strange |= -int64_t(!is_finite(p[j]));
    return !strange;
  }
  static bool positive(const double* q, int64_t count) {
    int64_t strange = 0;
    for (int64_t j = 0; j < count; ++j) strange |= -int64_t(!(q[j] > 0 && q[j] < kInfinity));
    return !strange;
  }

 public:
  // What a block contributes to the results: v and the elements' shares.
  double level(const MeanBlock& block) const {
    return entropic ? (a_first - b_first) + std::log(block.value) : sign * block.value;
  }
  double level(const LogBlock& block) const { return block.value; }
  static double share_of(const MeanBlock& block, double b_j, double b_first) {
    return exponential(b_j - b_first) / block.weight;
  }
  static double share_of(const LogBlock& block, double b_j, double) { return exponential(b_j - block.b) / block.sum_b; }
};

// What a chunk holds of the regression: the elements [begin, end), in blocks of one element except for
// blocks[first] ... blocks[last]. Those before `begin` belong to a block of a chunk further left.
template <class Block>
struct Chunk {
  Block* blocks;
  int64_t first, last;
  int64_t begin, end;
  bool regular;  // no nan and no infinity

  bool empty() const { return begin >= end; }

  template <class In>
  Block front(const Vector<In>& vector) const {
    return first <= last && blocks[first].start == begin ? blocks[first] : single(vector, begin);
  }
  template <class In>
  Block back(const Vector<In>& vector) const {
    return first <= last && blocks[last].end == end ? blocks[last] : single(vector, end - 1);
  }
  void drop_front(const Block& block) {
    if (first <= last && blocks[first].start == begin) ++first;
    begin = block.end;
  }
  void drop_back(const Block& block) {
    if (first <= last && blocks[last].end == end) --last;
    end = block.start;
  }

 private:
  template <class In>
  static Block single(const Vector<In>& vector, int64_t j) {
    double p, q;
    vector.evaluate(static_cast<Block*>(nullptr), j, 1, &p, &q);
    return Block::single(p, q, j);
  }
};

// A block takes one element that no other block of several has, so this many fit: one more than half a chunk, as
// join() adds one.
constexpr int64_t kBlocksPerChunk = kChunk / 2 + 1;

// Doubles that a thread has at hand for a chunk: p and q while it is pooled, segments of terms and results after that.
// What is walked together does not lie a multiple of 4096 bytes apart, where a load would wait for a store.
constexpr int64_t kGap = 64, kPitch = kSegment + kGap, kChunkMemory = 2 * kChunk + kGap;
static_assert(4 * kPitch <= kChunkMemory, "a, b, v and the share");

// Runs body(chunk, memory) for every chunk; `memory` is that of the thread that calls.
template <class Body>
void for_each_chunk(int64_t count, double* memory, int threads, const Body& body) {
  if (count == 1) return body(int64_t(0), memory);
  parallel_for(count, threads, [&](int64_t chunk) { body(chunk, ScratchArray<double>(kChunkMemory)); });
}

template <class In, class Block>
void pool_chunk(const Vector<In>& vector, int64_t index, Chunk<Block>& chunk, double* memory) {
  const int64_t first = index * kChunk, count = std::min(kChunk, vector.n - first);
  double *const p = memory, *const q = p + kChunk + kGap;
  chunk.regular = true;
  for_each_segment(vector.n, index, [&](int64_t begin, int64_t length) {
    const bool regular = vector.evaluate(chunk.blocks, begin, length, p + (begin - first), q + (begin - first));
    chunk.regular = chunk.regular && regular;
  });
  chunk.first = 0;
  chunk.last = -1;
  chunk.begin = first;
  chunk.end = first + count;
  if (!chunk.regular) return;
  Block* end = pool_elements(p, q, count, !vector.weight && !vector.entropic, chunk.blocks);
  for (Block* moved = chunk.blocks; moved < end; ++moved) moved->start += first, moved->end += first;
  chunk.last = end - chunk.blocks - 1;
}

// Joins the chunks [begin, middle) with [middle, end): the block at the seam takes in neighbours while they violate.
template <class In, class Block>
void join(const Vector<In>& vector, Chunk<Block>* chunks, int64_t begin, int64_t middle, int64_t end) {
  Chunk<Block>*left = chunks + middle - 1, *right = chunks + middle;
  auto more_left = [&] {
    while (left > chunks + begin && left->empty()) --left;
    return !left->empty();
  };
  auto more_right = [&] {
    while (right < chunks + end && right->empty()) ++right;
    return right < chunks + end;
  };
  more_left();
  Block block = right->front(vector), previous = left->back(vector);
  if (!(previous.value < block.value)) return;
  right->drop_front(block);
  // Before each turn `previous`, the block to the left of the one at the seam, violates. The turn takes it in, then all
  // on the right that violate, and so leaves fewer blocks on both sides.
  Chunk<Block>* owner;
  do {
    owner = left;
    left->drop_back(previous);
    block = Block::pooled(previous, block);
    while (more_right()) {
      const Block next = right->front(vector);
      if (!(block.value < next.value)) break;
      block = Block::pooled(block, next);
      right->drop_front(next);
    }
    if (!more_left()) break;
    previous = left->back(vector);
  } while (previous.value < block.value);
  owner->blocks[++owner->last] = block;
  owner->end = block.end;
}

template <class In, class Block>
void write_chunk(const Vector<In>& vector, int64_t index, const Chunk<Block>& chunk, const Block* before,
                 double* memory) {
  int64_t next = chunk.first;
  for_each_segment(vector.n, index, [&](int64_t begin, int64_t count) {
    double *const a = memory, *const b = a + kPitch, *const v = b + kPitch, *const share = v + kPitch;
    uint8_t starts[kSegment] = {};
    vector.a.evaluate(begin, count, a);
    vector.b.evaluate(begin, count, b);
    const bool primal = vector.result != IsotonicResult::kRegression;
    for (int64_t j = 0; j < count; ++j) {
      v[j] = primal ? b[j] : a[j] - b[j];  // what an element has that is a block by itself
      starts[j] = 1;
    }
    if (vector.share) std::fill(share, share + count, 1.0);
    auto write = [&](const Block& block) {
      const int64_t first = std::max(block.start - begin, int64_t(0)), last = std::min(block.end - begin, count);
      const double value = vector.level(block);
      for (int64_t j = first; j < last; ++j) v[j] = primal ? a[j] - value : value, starts[j] = 0;
      if (block.start >= begin) starts[first] = 1;
      if (vector.share)
        for (int64_t j = first; j < last; ++j) share[j] = vector.share_of(block, b[j], vector.b_first);
    };
    if (before && before->end > begin) write(*before);
    // Before each turn the chunk's blocks in front of `next` are written, as far as this segment goes.
    for (; next <= chunk.last && chunk.blocks[next].start < begin + count; ++next) {
      write(chunk.blocks[next]);
      if (chunk.blocks[next].end > begin + count) break;  // goes on in the next segment
    }
    pack_blocks(starts, count, vector.blocks + begin / kBlockBits);
    if (vector.result == IsotonicResult::kExpPrimal)
      for (int64_t j = 0; j < count; ++j) v[j] = exponential(v[j]);
    if (vector.scale != 1)
      for (int64_t j = 0; j < count; ++j) v[j] *= vector.scale;
    deliver_doubles(v, vector.order, begin, count, vector.out);
    if (vector.share) deliver_doubles(share, nullptr, begin, count, vector.share);
  });
}

template <class In>
void write_nan(const Vector<In>& vector) {
  for (int64_t j = 0; j < vector.n; ++j) {
    store_double(kNan, vector.out[j]);
    if (vector.share) store_double(kNan, vector.share[j]);
  }
  std::fill(vector.blocks, vector.blocks + block_words(vector.n), 0);
}

template <class Block, class In>
void regress(const Vector<In>& vector, Arena arena, double* memory, int threads) {
  const int64_t count = chunks_of(vector.n);
  Chunk<Block>* chunks = arena.take<Chunk<Block>>(count);
  Block* blocks = arena.take<Block>(vector.n / 2 + count);
  if (count == 1) {
    chunks[0].blocks = blocks;
    pool_chunk(vector, 0, chunks[0], memory);
  } else {
    // Packed, as most chunks leave few blocks: of a long vector's slots only the first pages are touched.
    std::atomic<int64_t> taken{0};
    for_each_chunk(count, memory, threads, [&](int64_t i, double* own) {
      const ScratchArray<Block> pooled(kBlocksPerChunk);
      chunks[i].blocks = pooled;
      pool_chunk(vector, i, chunks[i], own);
      const int64_t kept = chunks[i].last + 1;
      chunks[i].blocks = blocks + taken.fetch_add(kept + 1, std::memory_order_relaxed);
      std::copy(&pooled[0], &pooled[kept], chunks[i].blocks);
    });
  }
  bool regular = true;
  for (int64_t i = 0; i < count; ++i) regular = regular && chunks[i].regular;
  if (!regular) return write_nan(vector);
  // Before each turn pieces of `size` chunks are monotone; the turn joins them two by two.
  for (int64_t size = 1; size < count; size *= 2)
    parallel_for((count + size - 1) / (2 * size), threads, [&](int64_t i) {
      const int64_t begin = 2 * size * i;
      join(vector, chunks, begin, begin + size, std::min(begin + 2 * size, count));
    });
  for_each_chunk(count, memory, threads, [&](int64_t i, double* own) {
    const Block* before = nullptr;
    if (chunks[i].empty() || chunks[i].begin > i * kChunk) {
      int64_t owner = i - 1;  // chunk 0 always keeps its first element, and so is never empty
      while (chunks[owner].empty()) --owner;
      before = chunks[owner].blocks + chunks[owner].last;
    }
    write_chunk(vector, i, chunks[i], before, own);
  });
}

// The results where every element is a block by itself.
template <class In>
void write_apart(const Vector<In>& vector, double* memory, int threads) {
  for_each_chunk(chunks_of(vector.n), memory, threads, [&](int64_t i, double* own) {
    const int64_t begin = i * kChunk;
    const Chunk<MeanBlock> chunk{nullptr, 0, -1, begin, std::min(begin + kChunk, vector.n), true};
    write_chunk<In, MeanBlock>(vector, i, chunk, nullptr, own);
  });
}

template <class In>
void regress_vectors(const IsotonicArgs& args, int threads) {
  const Shape& shape = args.shape;
  const bool entropic = args.divergence == Divergence::kKL;
  std::unique_ptr<double[]> a_table, b_table;
  if (entropic || args.a.logarithm)
    a_table = common_table<In>(args.a, shape, args.result != IsotonicResult::kRegression, threads);
  if (entropic || args.b.logarithm) b_table = common_table<In>(args.b, shape, false, threads);
  const Tensor<const In> a{static_cast<const In*>(args.a.data), args.a.strides};
  const Tensor<const In> b{static_cast<const In*>(args.b.data), args.b.strides};
  const Tensor<const In> weight{static_cast<const In*>(args.weight), args.weight_strides};
  const Tensor<const int32_t> order{args.order, args.order_strides};
  const Tensor<In> out{static_cast<In*>(args.out), args.out_strides};
  const Tensor<In> share{static_cast<In*>(args.share), args.share_strides};

  const bool adjacent = a.adjacent(shape) && b.adjacent(shape) && weight.adjacent(shape) && order.adjacent(shape) &&
                        out.adjacent(shape) && share.adjacent(shape);
  const RowBatches batches(shape, adjacent, 2 * kChunk, threads);
  const int64_t n = batches.n, chunks = chunks_of(n), slots = n / 2 + chunks;
  const int64_t near = near_entries(n, args.order != nullptr);
  const size_t bytes = a.bytes(batches) + b.bytes(batches) + weight.bytes(batches) + order.bytes(batches) +
                       out.bytes(batches) + share.bytes(batches) + Arena::bytes<In>(near) +
                       Arena::bytes<Chunk<LogBlock>>(chunks) +
                       (entropic ? Arena::bytes<LogBlock>(slots) : Arena::bytes<MeanBlock>(slots));
  out.prefer_large_pages(batches);
  batches.for_each(bytes, [&](int64_t first, int64_t live, Arena arena) {
    const GatheredRows<const In> a_rows(a, batches, first, live, arena), b_rows(b, batches, first, live, arena);
    const GatheredRows<const In> weights(weight, batches, first, live, arena);
    const GatheredRows<const int32_t> orders(order, batches, first, live, arena);
    const GatheredRows<In> outs(out, batches, first, live, arena), shares(share, batches, first, live, arena);
    In* near_row = arena.take<In>(near);
    char* memory = arena.take<char>(0);
    a_rows.load();
    b_rows.load();
    weights.load();
    orders.load();
    const ScratchArray<double> chunk_memory(kChunkMemory);
    std::unique_ptr<double[]> narrowed_a;
    for (int64_t i = 0; i < live; ++i) {
      const ScratchRow<In> row(outs[i], near_row, near);
      if (args.order) {
        check_order(orders[i], n);
        row.clear(n);
      }
      Vector<In> vector{n,
                        {a_rows[i], args.a.scale, args.a.logarithm, n, a_table.get()},
                        {b_rows[i], args.b.scale, args.b.logarithm, n, b_table.get()},
                        weights[i],
                        args.increasing ? -1.0 : 1.0,
                        args.result,
                        args.scale,
                        orders[i],
                        row.data(),
                        shares[i],
                        args.blocks + (first + i) * block_words(n),
                        entropic};
      const bool primal = args.result != IsotonicResult::kRegression;
      if (primal) vector.a.origin = vector.a.entry(0);
      const double bound = primal ? widest_gap(vector.b, entropic) : 0;
      const bool wide = primal && is_wide(vector.a, bound);
      const Gaps gaps = wide ? gaps_beside(vector.a, bound) : Gaps{};
      if (gaps.some_exceed && !gaps.all_reach)
        vector.a.table = (narrowed_a = narrowed(vector.a, bound, entropic)).get();
      if (gaps.all_reach)
        write_apart(vector, chunk_memory, batches.within);
      else if (entropic && !vector.narrow())
        regress<LogBlock>(vector, Arena{memory}, chunk_memory, batches.within);
      else
        regress<MeanBlock>(vector, Arena{memory}, chunk_memory, batches.within);
      if (wide && !gaps.all_reach)
        for_each_chunk(chunks, chunk_memory, batches.within,
                       [&](int64_t chunk, double* own) { write_by_differences(vector, chunk, own); });
      row.store();
    }
    outs.store();
    shares.store();
  });
}

}  // namespace

void isotonic(const IsotonicArgs& args, int threads) {
  HYPERSIMPLEX_DISPATCH(args.dtype, regress_vectors, args, threads);
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
