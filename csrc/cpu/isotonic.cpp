// Isotonic regression. Pool adjacent violators runs over chunks of a vector; then neighbouring pieces are joined, pair
// by pair, in a tree: each is monotone by itself, so only one block grows across the seam. Blocks of several elements
// are kept where their chunk left them until the results are written; those of one element need no memory.
#include <cmath>
#include <limits>

#include "isa_launchers.h"
#include "segments.h"

namespace hypersimplex {
namespace cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// A block of adjacent elements [start, end). `value` is what must not increase from block to block. Of an element, p
// and q are the difference a - b and the weight.
struct MeanBlock {
  double value, sum, weight;
  int64_t start, end;

  static double value_of(double p, double) { return p; }
  static MeanBlock single(double p, double q, int64_t j) { return {p, q * p, q, j, j + 1}; }
  static MeanBlock pooled(const MeanBlock& left, const MeanBlock& right) {
    const double sum = left.sum + right.sum, weight = left.weight + right.weight;
    return {sum / weight, sum, weight, left.start, right.end};
  }
  double share(double) const { return kNan; }
};

// p and q are a and b. The sums are relative to the first element, the largest of its block:
// sum_a = sum_B exp(a - a_first).
struct LogBlock {
  double value, a, b, sum_a, sum_b;
  int64_t start, end;

  static double value_of(double p, double q) { return p - q; }
  static LogBlock single(double p, double q, int64_t j) { return {p - q, p, q, 1, 1, j, j + 1}; }
  static LogBlock pooled(const LogBlock& left, const LogBlock& right) {
    const double sum_a = left.sum_a + right.sum_a * std::exp(right.a - left.a);
    const double sum_b = left.sum_b + right.sum_b * std::exp(right.b - left.b);
    return {(left.a - left.b) + std::log(sum_a / sum_b), left.a, left.b, sum_a, sum_b, left.start, right.end};
  }
  double share(double b_j) const { return std::exp(b_j - b) / sum_b; }
};

// One term of a vector.
template <class In>
struct Term {
  const In* row;
  double scale;
  bool logarithm;
  int64_t n;
  const double* table;  // all of the term, where the vectors have it in common; or null

  void evaluate(int64_t begin, int64_t count, double* out) const {
    if (table) {
      std::copy(table + begin, table + begin + count, out);
      return;
    }
    if (row)
      for (int64_t j = 0; j < count; ++j) out[j] = scale * double(load(row[begin + j]));
    else
      for (int64_t j = 0; j < count; ++j) out[j] = scale * double(n - begin - j);
    if (logarithm)
      for (int64_t j = 0; j < count; ++j) out[j] = std::log(out[j]);
  }
};

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

  // p and q of elements; false where one of them is a nan or an infinity.
  bool evaluate(const MeanBlock*, int64_t begin, int64_t count, double* p, double* q) const {
    evaluate_terms(begin, count, p, q);
    for (int64_t j = 0; j < count; ++j) p[j] = sign * (p[j] - q[j]);
    if (weight)
      for (int64_t j = 0; j < count; ++j) q[j] = weight_of(load(weight[begin + j]));
    else
      std::fill(q, q + count, 1.0);
    return finite(p, q, count);
  }
  bool evaluate(const LogBlock*, int64_t begin, int64_t count, double* p, double* q) const {
    evaluate_terms(begin, count, p, q);
    return finite(p, q, count);
  }

 private:
  static double weight_of(double w) { return w > 0 ? w : kNan; }
  void evaluate_terms(int64_t begin, int64_t count, double* p, double* q) const {
    a.evaluate(begin, count, p);
    b.evaluate(begin, count, q);
  }
  static bool finite(const double* p, const double* q, int64_t count) {
    bool all = true;
    for (int64_t j = 0; j < count; ++j) all &= (p[j] - p[j]) + (q[j] - q[j]) == 0;
    return all;
  }
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

template <class In, class Block>
void pool_chunk(const Vector<In>& vector, int64_t index, Chunk<Block>& chunk) {
  const int64_t first = index * kChunk, count = std::min(kChunk, vector.n - first);
  double p_memory[kChunk + 1], q_memory[kChunk + 1];
  double *p = p_memory + 1, *q = q_memory + 1;
  chunk.regular = vector.evaluate(chunk.blocks, first, count, p, q);
  p[-1] = kInfinity;
  q[-1] = 0;
  Block* next = chunk.blocks;  // behind the blocks of several elements
  Block block = Block::single(p[0], q[0], 0);
  for (int64_t j = 1; j < count; ++j) {
    // The blocks left of `block`, and it, hold the regression of the elements before this one.
    const Block element = Block::single(p[j], q[j], j);
    if (!(block.value < element.value)) {
      if (block.end - block.start > 1) *next++ = block;
      block = element;
      continue;
    }
    block = Block::pooled(block, element);
    for (;;) {
      const int64_t left = block.start - 1;
      if (next > chunk.blocks && next[-1].end > left) {
        if (!(next[-1].value < block.value)) break;
        block = Block::pooled(*--next, block);
      } else {
        if (!(Block::value_of(p[left], q[left]) < block.value)) break;
        block = Block::pooled(Block::single(p[left], q[left], left), block);
      }
    }
  }
  if (block.end - block.start > 1) *next++ = block;
  for (Block* moved = chunk.blocks; moved < next; ++moved) moved->start += first, moved->end += first;
  chunk.first = 0;
  chunk.last = next - chunk.blocks - 1;
  chunk.begin = first;
  chunk.end = first + count;
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
void write_chunk(const Vector<In>& vector, int64_t index, const Chunk<Block>& chunk, const Block* before) {
  int64_t next = chunk.first;
  for_each_segment(vector.n, index, [&](int64_t begin, int64_t count) {
    double a[kSegment], b[kSegment], v[kSegment], share[kSegment];
    uint8_t starts[kSegment] = {};
    vector.a.evaluate(begin, count, a);
    vector.b.evaluate(begin, count, b);
    for (int64_t j = 0; j < count; ++j) {
      v[j] = a[j] - b[j];
      share[j] = 1;
      starts[j] = 1;
    }
    auto write = [&](const Block& block) {
      const int64_t first = std::max(block.start - begin, int64_t(0)), last = std::min(block.end - begin, count);
      const double value = vector.sign * block.value;
      for (int64_t j = first; j < last; ++j) v[j] = value, starts[j] = 0;
      if (block.start >= begin) starts[first] = 1;
      if (vector.share)
        for (int64_t j = first; j < last; ++j) share[j] = block.share(b[j]);
    };
    if (before && before->end > begin) write(*before);
    for (; next <= chunk.last && chunk.blocks[next].start < begin + count; ++next) {
      write(chunk.blocks[next]);
      if (chunk.blocks[next].end > begin + count) break;  // goes on in the next segment
    }
    pack_blocks(starts, count, vector.blocks + begin / kBlockBits);
    if (vector.result != IsotonicResult::kRegression)
      for (int64_t j = 0; j < count; ++j) v[j] = a[j] - v[j];
    if (vector.result == IsotonicResult::kExpPrimal)
      for (int64_t j = 0; j < count; ++j) v[j] = std::exp(v[j]);
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

template <class In, class Block>
void regress(const Vector<In>& vector, Chunk<Block>* chunks, Block* blocks, int threads) {
  const int64_t count = chunks_of(vector.n);
  parallel_for(count, threads, [&](int64_t i) {
    chunks[i].blocks = blocks + i * kBlocksPerChunk;
    pool_chunk(vector, i, chunks[i]);
  });
  bool regular = true;
  for (int64_t i = 0; i < count; ++i) regular = regular && chunks[i].regular;
  if (!regular) return write_nan(vector);
  for (int64_t size = 1; size < count; size *= 2)
    parallel_for((count + size - 1) / (2 * size), threads, [&](int64_t i) {
      const int64_t begin = 2 * size * i;
      join(vector, chunks, begin, begin + size, std::min(begin + 2 * size, count));
    });
  parallel_for(count, threads, [&](int64_t i) {
    const Block* before = nullptr;
    if (chunks[i].empty() || chunks[i].begin > i * kChunk) {
      int64_t owner = i - 1;
      while (chunks[owner].empty()) --owner;
      before = chunks[owner].blocks + chunks[owner].last;
    }
    write_chunk(vector, i, chunks[i], before);
  });
}

// The term in doubles, where it is the same for all vectors and its logarithms are worth keeping.
template <class In>
std::unique_ptr<double[]> common_table(const IsotonicTerm& term, const Shape& shape, int threads) {
  const Tensor<const In> tensor{static_cast<const In*>(term.data), term.strides};
  const bool common = !term.data || ((shape.outer == 1 || term.strides.outer == 0) &&
                                     (shape.inner == 1 || term.strides.inner == 0) && tensor.adjacent(shape));
  const int64_t n = shape.n1 * shape.n2;
  if (!common || !term.logarithm || n == 0) return nullptr;
  std::unique_ptr<double[]> table(new double[size_t(n)]);
  const Term<In> evaluated{tensor.data, term.scale, true, n, nullptr};
  parallel_for(chunks_of(n), threads, [&](int64_t chunk) {
    for_each_segment(n, chunk, [&](int64_t begin, int64_t count) { evaluated.evaluate(begin, count, &table[begin]); });
  });
  return table;
}

template <class In, class Block>
void regress_vectors(const IsotonicArgs& args, int threads) {
  const Shape& shape = args.shape;
  const auto a_table = common_table<In>(args.a, shape, threads), b_table = common_table<In>(args.b, shape, threads);
  const Tensor<const In> a{a_table ? nullptr : static_cast<const In*>(args.a.data), args.a.strides};
  const Tensor<const In> b{b_table ? nullptr : static_cast<const In*>(args.b.data), args.b.strides};
  const Tensor<const In> weight{static_cast<const In*>(args.weight), args.weight_strides};
  const Tensor<const int32_t> order{args.order, args.order_strides};
  const Tensor<In> out{static_cast<In*>(args.out), args.out_strides};
  const Tensor<In> share{static_cast<In*>(args.share), args.share_strides};

  const bool adjacent = a.adjacent(shape) && b.adjacent(shape) && weight.adjacent(shape) && order.adjacent(shape) &&
                        out.adjacent(shape) && share.adjacent(shape);
  const Bundles bundles(shape, adjacent, 2 * kChunk, threads);
  const int64_t n = bundles.n, chunks = chunks_of(n), slots = n / 2 + chunks;
  const size_t bytes = a.bytes(bundles) + b.bytes(bundles) + weight.bytes(bundles) + order.bytes(bundles) +
                       out.bytes(bundles) + share.bytes(bundles) + Arena::bytes<Chunk<Block>>(chunks) +
                       Arena::bytes<Block>(slots);
  bundles.for_each(bytes, [&](int64_t first, int64_t live, Arena arena) {
    const Rows<const In> a_rows(a, bundles, first, live, arena), b_rows(b, bundles, first, live, arena);
    const Rows<const In> weights(weight, bundles, first, live, arena);
    const Rows<const int32_t> orders(order, bundles, first, live, arena);
    const Rows<In> outs(out, bundles, first, live, arena), shares(share, bundles, first, live, arena);
    Chunk<Block>* memory = arena.take<Chunk<Block>>(chunks);
    Block* blocks = arena.take<Block>(slots);
    a_rows.load();
    b_rows.load();
    weights.load();
    orders.load();
    for (int64_t i = 0; i < live; ++i) {
      const Vector<In> vector{n,
                              {a_rows[i], args.a.scale, args.a.logarithm, n, a_table.get()},
                              {b_rows[i], args.b.scale, args.b.logarithm, n, b_table.get()},
                              weights[i],
                              args.increasing ? -1.0 : 1.0,
                              args.result,
                              args.scale,
                              orders[i],
                              outs[i],
                              shares[i],
                              args.blocks + (first + i) * block_words(n)};
      regress(vector, memory, blocks, bundles.within);
    }
    outs.store();
    shares.store();
  });
}

template <class In>
void regress_divergence(const IsotonicArgs& args, int threads) {
  if (args.divergence == Divergence::kL2)
    regress_vectors<In, MeanBlock>(args, threads);
  else
    regress_vectors<In, LogBlock>(args, threads);
}

}  // namespace

void isotonic(const IsotonicArgs& args, int threads) {
  HYPERSIMPLEX_DISPATCH(args.dtype, regress_divergence, args, threads);
}

}  // namespace cpu
}  // namespace hypersimplex
