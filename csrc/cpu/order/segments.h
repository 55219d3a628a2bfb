// What isotonic.cpp and block_product.cpp share: a vector is walked in segments that are turned into doubles in small
// buffers, long vectors in chunks that threads may part. Where they lie depends on the vector's length alone, so
// results do not depend on the number of threads.
#pragma once

#include <cstring>
#include <limits>

#include "cpu/order/strided_rows.h"
#include "cpu/simd/scratch.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

constexpr int64_t kSegment = 512;
constexpr int64_t kChunk = 4096;  // a multiple of the segment
constexpr int64_t kBlockBits = 8 * sizeof(Blocks);

inline int64_t block_words(int64_t n) { return (n + kBlockBits - 1) / kBlockBits; }

// A segment's bits as bytes, 0 or 1, and back, eight at a time by multiplication.
inline void unpack_blocks(const Blocks* blocks, int64_t count, uint8_t* starts) {
  for (int64_t word = 0; word < block_words(count); ++word)
    for (int byte = 0; byte < 4; ++byte) {
      const uint64_t copies = (blocks[word] >> 8 * byte & 0xff) * 0x0101010101010101u;
      const uint64_t own = copies & 0x8040201008040201u;  // byte i keeps bit i
      const uint64_t flags = (own + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
      memcpy(starts + 32 * word + 8 * byte, &flags, 8);
    }
}
inline void pack_blocks(const uint8_t* starts, int64_t count, Blocks* blocks) {
  for (int64_t word = 0; word < block_words(count); ++word) {
    Blocks bits = 0;
    for (int byte = 0; byte < 4; ++byte) {
      uint64_t flags;
      memcpy(&flags, starts + 32 * word + 8 * byte, 8);
      bits |= Blocks(flags * 0x0102040810204080u >> 56) << 8 * byte;  // bit 0 of byte i becomes bit 56 + i
    }
    blocks[word] = bits;
  }
}
inline int64_t chunks_of(int64_t n) { return (n + kChunk - 1) / kChunk; }

template <class Body>
void for_each_segment(int64_t n, int64_t chunk, const Body& body) {
  const int64_t end = std::min((chunk + 1) * kChunk, n);
  for (int64_t begin = chunk * kChunk; begin < end; begin += kSegment) body(begin, std::min(kSegment, end - begin));
}

inline double sum_of(const double* v, int64_t count) {
  double lanes[8] = {};
  int64_t j = 0;
  for (; j + 8 <= count; j += 8)
    for (int64_t i = 0; i < 8; ++i) lanes[i] += v[j + i];
  for (; j < count; ++j) lanes[j % 8] += v[j];
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

// Stores a double rounded once, to nearest even. For a half the float in between is rounded to odd, which tells the
// second rounding on which side of a tie the number lies.
inline void store_double(double v, double& out) { out = v; }
inline void store_double(double v, float& out) { out = float(v); }
template <class Half>
void store_double(double v, Half& out) {
  float nearest = float(v);
  uint32_t bits = bits_of(nearest);
  if (double(nearest) < v || double(nearest) > v) {
    const bool short_of = std::abs(double(nearest)) < std::abs(v);
    if (!(bits & 1)) bits += short_of ? 1 : ~uint32_t(0);
  }
  store(float_of(bits), out);
}

// Entries begin <= j < begin + count of a row, or those at order[j].
template <class In>
void fetch_doubles(const In* row, const int32_t* order, int64_t begin, int64_t count, double* out) {
  if (order)
    for (int64_t j = 0; j < count; ++j) out[j] = load(row[order[begin + j]]);
  else
    for (int64_t j = 0; j < count; ++j) out[j] = load(row[begin + j]);
}
// Once for a row, as nothing else keeps a caller's order within it.
inline void check_order(const int32_t* order, int64_t n) {
  const uint32_t end = uint32_t(std::min(n, int64_t(1) << 31));
  uint32_t outside = 0;
  for (int64_t j = 0; j < n; ++j) outside |= uint32_t(uint32_t(order[j]) >= end);
  if (outside) cpu::raise_order_out_of_range(n);
}
// What is read or written in an order of its own goes through memory that is near, unless it is too long for that.
inline int64_t near_entries(int64_t n, bool ordered) { return ordered && n <= (int64_t(1) << 15) ? n : 0; }

// A row to be written into data() and then stored; with no near entries the row itself.
template <class In>
struct ScratchRow {
  In *row, *near;
  int64_t entries;

  ScratchRow(In* row, In* near, int64_t entries) : row(row), near(near), entries(entries) {}
  In* data() const { return entries ? near : row; }
  // Before entries are put at places of an order, which may leave some out.
  void clear(int64_t n) const {
    In nan;
    store_double(std::numeric_limits<double>::quiet_NaN(), nan);
    std::fill(data(), data() + n, nan);
  }
  void store() const { std::copy(near, near + entries, row); }
};

template <class In>
void deliver_doubles(const double* in, const int32_t* order, int64_t begin, int64_t count, In* row) {
  if (order)
    for (int64_t j = 0; j < count; ++j) store_double(in[j], row[order[begin + j]]);
  else
    for (int64_t j = 0; j < count; ++j) store_double(in[j], row[begin + j]);
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
