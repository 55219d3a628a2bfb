// Isotonic regression. Pool adjacent violators runs over chunks of a vector; then neighbouring pieces are joined, pair
// by pair, in a tree: each is monotone by itself, so only one block grows across the seam. The blocks stay where their
// chunk left them until the results are written.
#include <cmath>
#include <limits>

#include "isa_launchers.h"
#include "segments.h"

namespace hypersimplex {
namespace cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// `value` is what must not increase from block to block.
struct MeanBlock {
  double value, sum, weight;
  int64_t start;

  static MeanBlock single(double a, double b, double weight, double sign, int64_t j) {
    const double difference = sign * (a - b);
    return {difference, weight * difference, weight, j};
  }
  static MeanBlock pooled(const MeanBlock& left, const MeanBlock& right) {
    const double sum = left.sum + right.sum, weight = left.weight + right.weight;
    return {sum / weight, sum, weight, left.start};
  }
  double share(double) const { return kNan; }
};

// The sums are relative to the first element, the largest of its block: sum_a = sum_B exp(a - a_first).
struct LogBlock {
  double value, a, b, sum_a, sum_b;
  int64_t start;

  static LogBlock single(double a, double b, double, double, int64_t j) { return {a - b, a, b, 1, 1, j}; }
  static LogBlock pooled(const LogBlock& left, const LogBlock& right) {
    const double sum_a = left.sum_a + right.sum_a * std::exp(right.a - left.a);
    const double sum_b = left.sum_b + right.sum_b * std::exp(right.b - left.b);
    return {(left.a - left.b) + std::log(sum_a / sum_b), left.a, left.b, sum_a, sum_b, left.start};
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
};

// The live blocks of a chunk are blocks[first] ... blocks[last]; blocks[first - 1] is free.
template <class Block>
struct Chunk {
  Block* blocks;
  int64_t first, last;
  const Block* before;  // the block that reaches in from the left
  bool regular;         // no nan and no infinity

  bool empty() const { return first > last; }
};

template <class In, class Block>
void pool_chunk(const Vector<In>& vector, int64_t index, Chunk<Block>& chunk) {
  double irregular = 0;
  Block* top = chunk.blocks;
  top->value = kInfinity;
  for_each_segment(vector.n, index, [&](int64_t begin, int64_t count) {
    double a[kSegment], b[kSegment], weight[kSegment];
    vector.a.evaluate(begin, count, a);
    vector.b.evaluate(begin, count, b);
    if (vector.weight)
      for (int64_t j = 0; j < count; ++j) weight[j] = load(vector.weight[begin + j]);
    else
      for (int64_t j = 0; j < count; ++j) weight[j] = 1;
    for (int64_t j = 0; j < count; ++j) irregular += (a[j] - a[j]) + (b[j] - b[j]) + (weight[j] - weight[j]);
    for (int64_t j = 0; j < count; ++j) {
      // The stack up to `top` holds the regression of the elements before this one.
      Block block = Block::single(a[j], b[j], weight[j], vector.sign, begin + j);
      while (top->value < block.value) block = Block::pooled(*top--, block);
      *++top = block;
    }
  });
  chunk.first = 1;
  chunk.last = top - chunk.blocks;
  chunk.regular = irregular == 0;
}

// Joins the chunks [begin, middle) with [middle, end): the block at the seam takes in neighbours while they violate.
template <class Block>
void join(Chunk<Block>* chunks, int64_t begin, int64_t middle, int64_t end) {
  int64_t left = middle - 1, right = middle;
  auto last_of_left = [&]() -> Block* {
    while (left > begin && chunks[left].empty()) --left;
    return chunks[left].empty() ? nullptr : chunks[left].blocks + chunks[left].last;
  };
  auto first_of_right = [&]() -> const Block* {
    while (right < end && chunks[right].empty()) ++right;
    return right == end ? nullptr : chunks[right].blocks + chunks[right].first;
  };
  Block* previous = last_of_left();  // the first block of either side is still in its first chunk
  const Block* next = first_of_right();
  if (!(previous->value < next->value)) return;
  Block block = *next;
  ++chunks[right].first;
  next = first_of_right();
  int64_t owner = left;
  do {
    owner = left;
    block = Block::pooled(*previous, block);
    --chunks[left].last;
    for (; next && block.value < next->value; next = first_of_right()) {
      block = Block::pooled(block, *next);
      ++chunks[right].first;
    }
    previous = last_of_left();
  } while (previous && previous->value < block.value);
  chunks[owner].blocks[++chunks[owner].last] = block;
}

template <class In, class Block>
void write_chunk(const Vector<In>& vector, int64_t index, const Chunk<Block>& chunk) {
  const Block* next = chunk.blocks + chunk.first;
  const Block* end = chunk.blocks + chunk.last + 1;
  Block* block = chunk.blocks + chunk.first - 1;
  if (chunk.before) *block = *chunk.before;
  for_each_segment(vector.n, index, [&](int64_t begin, int64_t count) {
    uint8_t starts[kSegment] = {};
    for (; next < end && next->start < begin + count; ++next) starts[next->start - begin] = 1;
    pack_blocks(starts, count, vector.blocks + begin / kBlockBits);
    if (vector.share) {
      double b[kSegment];
      const Block* of = block;
      vector.b.evaluate(begin, count, b);
      for (int64_t j = 0; j < count; ++j) {
        of += starts[j];
        b[j] = of->share(b[j]);
      }
      deliver_doubles(b, nullptr, begin, count, vector.share);
    }
    double out[kSegment];
    for (int64_t j = 0; j < count; ++j) {
      block += starts[j];
      out[j] = vector.sign * block->value;
    }
    if (vector.result != IsotonicResult::kRegression) {
      double a[kSegment];
      vector.a.evaluate(begin, count, a);
      for (int64_t j = 0; j < count; ++j) out[j] = a[j] - out[j];
    }
    if (vector.result == IsotonicResult::kExpPrimal)
      for (int64_t j = 0; j < count; ++j) out[j] = std::exp(out[j]);
    for (int64_t j = 0; j < count; ++j) out[j] *= vector.scale;
    deliver_doubles(out, vector.order, begin, count, vector.out);
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
    chunks[i].blocks = blocks + i * (kChunk + 1);
    pool_chunk(vector, i, chunks[i]);
  });
  bool regular = true;
  for (int64_t i = 0; i < count; ++i) regular = regular && chunks[i].regular;
  if (!regular) return write_nan(vector);
  for (int64_t size = 1; size < count; size *= 2)
    parallel_for((count + size - 1) / (2 * size), threads, [&](int64_t i) {
      const int64_t begin = 2 * size * i;
      join(chunks, begin, begin + size, std::min(begin + 2 * size, count));
    });
  const Block* before = nullptr;
  for (int64_t i = 0; i < count; ++i) {
    chunks[i].before = before;
    if (!chunks[i].empty()) before = chunks[i].blocks + chunks[i].last;
  }
  parallel_for(count, threads, [&](int64_t i) { write_chunk(vector, i, chunks[i]); });
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
  const int64_t n = bundles.n, chunks = chunks_of(n), slots = n + chunks;
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
