// Products with the Jacobians of isotonic regression: sums over each block, then one sweep that writes. A long vector
// is cut into chunks; what a chunk holds of a block that began before it is added to that block's sums in order.
#include <limits>

#include "cpu/launchers.h"
#include "cpu/order/segments.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {
namespace {

template <class In>
struct Operand {
  const In* row;
  const int32_t* order;  // null: not ordered
  double* kept;          // all that has been fetched; or null

  // Elements begin <= j < begin + count, at `out` or elsewhere.
  const double* fetch(int64_t begin, int64_t count, double* out) const {
    if (!row)
      std::fill(out, out + count, 1.0);
    else
      fetch_doubles(row, order, begin, count, kept ? out = kept + begin : out);
    return out;
  }
  const double* fetch_again(int64_t begin, int64_t count, double* out) const {
    return kept ? kept + begin : fetch(begin, count, out);
  }
};

template <class In>
struct Vector {
  int64_t n;
  BlockProduct product;
  double scale;
  Operand<In> v, weight;
  const int32_t* order;
  In* out;
  const Blocks* blocks;
};

// Of each block that starts in a chunk, from place 1 on; place 0 is for the block that reaches in from the left.
struct Sums {
  double *v, *weight;
  int64_t started;
};

// Most words of blocks are one or the other: inside a block, or blocks of one element.
constexpr Blocks kNoStart = 0, kAllStart = ~Blocks(0);

double sum_word(const double* v) {
  double lanes[8];
  for (int i = 0; i < 8; ++i) lanes[i] = (v[i] + v[i + 8]) + (v[i + 16] + v[i + 24]);
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}
// The sums of v and of the weight side by side, so that both start anew by one mask, without a branch.
using Pair = double __attribute__((vector_size(16)));
using PairBits = int64_t __attribute__((vector_size(16)));

template <class In>
void sum_chunk(const Vector<In>& vector, int64_t index, Sums& sums) {
  const bool weigh = vector.product == BlockProduct::kMean || vector.product == BlockProduct::kResidual;
  double sum_v = 0, sum_weight = 0;
  int64_t block = 0;
  sums.v[0] = sums.weight[0] = 0;
  for_each_segment(vector.n, index, [&](int64_t begin, int64_t count) {
    uint8_t starts[kSegment];
    double v_buffer[kSegment], weight_buffer[kSegment], weighted[kSegment];
    unpack_blocks(vector.blocks + begin / kBlockBits, count, starts);
    const double* v = vector.v.fetch(begin, count, v_buffer);
    const double* weight = vector.weight.fetch(begin, count, weight_buffer);
    if (weigh && vector.weight.row) {
      for (int64_t j = 0; j < count; ++j) weighted[j] = v[j] * weight[j];
      v = weighted;
    }
    auto word_at = [&](int64_t j) { return vector.blocks[(begin + j) / kBlockBits]; };
    // Before each turn `block` is the place of the block that holds the element before j, and the two sums are what of
    // it lies in this chunk so far.
    for (int64_t j = 0; j < count; j += kBlockBits) {
      const int64_t end = std::min(j + kBlockBits, count);
      if (word_at(j) == kNoStart && end - j == kBlockBits) {
        sum_v += sum_word(v + j);
        sum_weight += sum_word(weight + j);
        sums.v[block] = sum_v;
        sums.weight[block] = sum_weight;
      } else if (word_at(j) == kAllStart) {
        std::copy(v + j, v + end, sums.v + block + 1);
        std::copy(weight + j, weight + end, sums.weight + block + 1);
        block += end - j;
        sum_v = v[end - 1];
        sum_weight = weight[end - 1];
      } else {
        Pair sum = {sum_v, sum_weight};
        for (int64_t i = j; i < end; ++i) {
          const int64_t kept = int64_t(starts[i]) - 1;
          sum = Pair(PairBits(sum) & PairBits{kept, kept}) + Pair{v[i], weight[i]};
          block += starts[i];
          sums.v[block] = sum[0];
          sums.weight[block] = sum[1];
        }
        sum_v = sum[0];
        sum_weight = sum[1];
      }
    }
  });
  sums.started = block;
}

// Gives every block the sums of all its chunks.
void connect(Sums* sums, int64_t chunks) {
  // Before each turn the last block of chunk `owner` reaches up to chunk i, and has its sums up to there.
  int64_t owner = 0;
  for (int64_t i = 1; i < chunks; ++i) {
    sums[owner].v[sums[owner].started] += sums[i].v[0];
    sums[owner].weight[sums[owner].started] += sums[i].weight[0];
    if (sums[i].started) owner = i;
  }
  // Now every block's sums are complete in the chunk where it starts. Before each turn they are complete at the last
  // place of chunk i - 1, too, even if that is place 0: this is the block that reaches into chunk i.
  for (int64_t i = 1; i < chunks; ++i) {
    sums[i].v[0] = sums[i - 1].v[sums[i - 1].started];
    sums[i].weight[0] = sums[i - 1].weight[sums[i - 1].started];
  }
}

// Makes the mean of a block of one element that element, which w v / w would miss by rounding.
template <class In>
void keep_single(const Vector<In>& vector, int64_t begin, int64_t count, const double* v, double* mean) {
  for (int64_t j = 0; j < count; j += kBlockBits) {
    const Blocks* word = vector.blocks + (begin + j) / kBlockBits;
    const int64_t left = vector.n - (begin + j);
    Blocks ends = *word >> 1;  // of blocks
    if (left <= kBlockBits)
      ends |= Blocks(1) << (left - 1);
    else
      ends |= word[1] << (kBlockBits - 1);
    for (Blocks single = *word & ends; single; single &= single - 1) {
      const int64_t i = j + __builtin_ctz(single);
      mean[i] = v[i];
    }
  }
}

template <class In>
void write_chunk(const Vector<In>& vector, int64_t index, const Sums& sums) {
  for (int64_t block = 0; block <= sums.started; ++block) sums.v[block] /= sums.weight[block];
  const double* mean = sums.v;
  for_each_segment(vector.n, index, [&](int64_t begin, int64_t count) {
    uint8_t starts[kSegment];
    double out[kSegment], buffer[kSegment];
    unpack_blocks(vector.blocks + begin / kBlockBits, count, starts);
    // Before each turn `mean` points to that of the block that holds the element before j.
    for (int64_t j = 0; j < count; j += kBlockBits) {
      const int64_t end = std::min(j + kBlockBits, count);
      const Blocks word = vector.blocks[(begin + j) / kBlockBits];
      if (word == kNoStart) {
        std::fill(out + j, out + end, *mean);
      } else if (word == kAllStart) {
        std::copy(mean + 1, mean + 1 + (end - j), out + j);
        mean += end - j;
      } else {
        for (int64_t i = j; i < end; ++i) {
          mean += starts[i];
          out[i] = *mean;
        }
      }
    }
    if (vector.product == BlockProduct::kResidual) {
      const double* other = vector.v.fetch_again(begin, count, buffer);
      if (vector.weight.row) keep_single(vector, begin, count, other, out);
      for (int64_t j = 0; j < count; ++j) out[j] = other[j] - out[j];
    }
    const bool weigh = vector.product == BlockProduct::kResidual || vector.product == BlockProduct::kTransposed;
    if (weigh && vector.weight.row) {
      const double* other = vector.weight.fetch_again(begin, count, buffer);
      for (int64_t j = 0; j < count; ++j) out[j] *= other[j];
    }
    if (vector.scale != 1)
      for (int64_t j = 0; j < count; ++j) out[j] *= vector.scale;
    deliver_doubles(out, vector.order, begin, count, vector.out);
  });
}

template <class In>
void multiply(const Vector<In>& vector, Sums* sums, double* memory, int threads) {
  if (!(vector.blocks[0] & 1)) {
    for (int64_t j = 0; j < vector.n; ++j) store_double(std::numeric_limits<double>::quiet_NaN(), vector.out[j]);
    return;
  }
  const int64_t chunks = chunks_of(vector.n);
  parallel_for(chunks, threads, [&](int64_t i) {
    sums[i].v = memory + i * 2 * (kChunk + 1);
    sums[i].weight = sums[i].v + std::min(kChunk, vector.n - i * kChunk) + 1;
    sum_chunk(vector, i, sums[i]);
  });
  connect(sums, chunks);
  parallel_for(chunks, threads, [&](int64_t i) { write_chunk(vector, i, sums[i]); });
}

template <class In>
void multiply_vectors(const BlockProductArgs& args, int threads) {
  const Shape& shape = args.shape;
  const Tensor<const In> v{static_cast<const In*>(args.v.data), args.v.strides};
  const Tensor<const In> weight{static_cast<const In*>(args.weight.data), args.weight.strides};
  const Tensor<In> out{static_cast<In*>(args.out.data), args.out.strides};
  const Tensor<const int32_t> order{args.order, args.order_strides};

  const bool adjacent = v.adjacent(shape) && weight.adjacent(shape) && out.adjacent(shape) && order.adjacent(shape);
  const RowBatches batches(shape, adjacent, 2 * kChunk, threads);
  const int64_t n = batches.n, chunks = chunks_of(n), numbers = 2 * (n + chunks);
  const bool v_ordered = args.order && args.v.ordered, weight_ordered = args.order && args.weight.ordered;
  const bool out_ordered = args.order && args.out.ordered;
  const int64_t kept_v = near_entries(n, v_ordered), kept_weight = near_entries(n, weight_ordered);
  const int64_t near = near_entries(n, out_ordered);
  const size_t bytes = v.bytes(batches) + weight.bytes(batches) + out.bytes(batches) + order.bytes(batches) +
                       Arena::bytes<Sums>(chunks) + Arena::bytes<double>(numbers) + Arena::bytes<double>(kept_v) +
                       Arena::bytes<double>(kept_weight) + Arena::bytes<In>(near);
  out.prefer_large_pages(batches);
  batches.for_each(bytes, [&](int64_t first, int64_t live, Arena arena) {
    const GatheredRows<const In> vs(v, batches, first, live, arena), weights(weight, batches, first, live, arena);
    const GatheredRows<In> outs(out, batches, first, live, arena);
    const GatheredRows<const int32_t> orders(order, batches, first, live, arena);
    Sums* sums = arena.take<Sums>(chunks);
    double *memory = arena.take<double>(numbers), *v_memory = arena.take<double>(kept_v);
    double* weight_memory = arena.take<double>(kept_weight);
    In* near_row = arena.take<In>(near);
    vs.load();
    weights.load();
    orders.load();
    for (int64_t i = 0; i < live; ++i) {
      const ScratchRow<In> row(outs[i], near_row, near);
      if (args.order) check_order(orders[i], n);
      if (out_ordered) row.clear(n);
      auto placed = [&](bool ordered) { return ordered ? orders[i] : nullptr; };
      multiply(Vector<In>{n,
                          args.product,
                          args.scale,
                          {vs[i], placed(v_ordered), kept_v ? v_memory : nullptr},
                          {weights[i], placed(weight_ordered), kept_weight ? weight_memory : nullptr},
                          placed(out_ordered),
                          row.data(),
                          args.blocks + (first + i) * block_words(n)},
               sums, memory, batches.within);
      row.store();
    }
    outs.store();
  });
}

}  // namespace

void block_product(const BlockProductArgs& args, int threads) {
  HYPERSIMPLEX_DISPATCH(args.dtype, multiply_vectors, args, threads);
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
