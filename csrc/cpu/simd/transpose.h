// kGroup rows of a tensor, each with its entries side by side, as [n, pitch] with a lane per row, and back. Rows are
// taken a chunk of 16 bytes at a time: chunks of several rows make one vector, and interleaving halves of such vectors
// transposes within all of their chunks at once.
#pragma once

#include <utility>

#include "cpu/projection/sweeps.h"

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define HYPERSIMPLEX_SHUFFLE
#endif
#endif

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

template <class T>
constexpr int kChunk = 16 / int(sizeof(T));  // entries

#ifdef HYPERSIMPLEX_SHUFFLE
template <class T, int kBytes>
struct PartOf {
  typedef T type __attribute__((vector_size(kBytes)));
};
template <class T, int kBytes>
using Part = typename PartOf<T, kBytes>::type;
template <int kCount>
using Places = std::make_integer_sequence<int, kCount>;

// A vector of the chunks that lie `pitch` apart.
template <class T, int kBytes, int... I>
static inline Part<T, kBytes> joined(Part<T, kBytes / 2> a, Part<T, kBytes / 2> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, I...);
}
template <class T, int kBytes = kVectorBytes>
static inline Part<T, kBytes> load_chunks(const T* from, int64_t pitch) {
  if constexpr (kBytes == 16) {
    Part<T, 16> chunk;
    memcpy(&chunk, from, sizeof chunk);
    return chunk;
  } else if constexpr (kBytes == 64) {
    return load_four(from, pitch);
  } else {
    return joined<T, kBytes>(load_chunks<T, 16>(from, pitch), load_chunks<T, 16>(from + pitch, pitch),
                             Places<kBytes / int(sizeof(T))>{});
  }
}
template <class T>
static inline void store_chunks(Vector<T> v, T* to, int64_t pitch) {
  for (int c = 0; c < kVectorBytes / 16; ++c) memcpy(to + c * pitch, reinterpret_cast<const char*>(&v) + 16 * c, 16);
}

// From the lower (kFirst = 0) or upper halves of the chunks of a and b: a0 b0 a1 b1 ...
template <class T, int kFirst, int... I>
static inline Vector<T> interleaved(Vector<T> a, Vector<T> b, std::integer_sequence<int, I...>) {
  constexpr int n = kChunk<T>;
  return __builtin_shufflevector(a, b, ((I % 2 ? kVectorLanes<T> : 0) + I / n * n + kFirst + I % n / 2)...);
}
// kChunk vectors, chunk by chunk.
template <class T>
static inline void transpose_chunks(Vector<T>* v) {
  constexpr int n = kChunk<T>;
  using All = Places<kVectorLanes<T>>;
  for (int stage = 1; stage < n; stage *= 2) {
    Vector<T> next[n];
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = interleaved<T, 0>(v[i], v[i + n / 2], All{});
      next[2 * i + 1] = interleaved<T, n / 2>(v[i], v[i + n / 2], All{});
    }
    for (int i = 0; i < n; ++i) v[i] = next[i];
  }
}

// Calls body(j, r) for tiles of kChunk columns and a vector's rows, so that all n >= kChunk columns are covered: the
// last tiles may overlap.
template <class T, class Body>
static inline void for_each_tile(int64_t n, const Body& body) {
  for (int64_t j = 0; j < n; j += kChunk<T>)
    for (int r = 0; r < kGroup; r += kVectorLanes<T>) body(j + kChunk<T> <= n ? j : n - kChunk<T>, r);
}
#endif

template <class T>
static inline void rows_to_lanes(const T* rows, int64_t stride, int64_t n, T* lanes, int64_t pitch) {
#ifdef HYPERSIMPLEX_SHUFFLE
  if (n >= kChunk<T>) {
    for_each_tile<T>(n, [&](int64_t j, int r) {
      Vector<T> v[kChunk<T>];
      for (int i = 0; i < kChunk<T>; ++i) v[i] = load_chunks<T>(rows + (r + i) * stride + j, kChunk<T> * stride);
      transpose_chunks<T>(v);
      for (int i = 0; i < kChunk<T>; ++i) store_vector<T>(v[i], lanes + (j + i) * pitch + r);
    });
    return;
  }
#endif
  for (int r = 0; r < kGroup; ++r)
    for (int64_t j = 0; j < n; ++j) lanes[j * pitch + r] = rows[r * stride + j];
}

template <class T>
static inline void lanes_to_rows(const T* lanes, int64_t pitch, int64_t n, T* rows, int64_t stride) {
#ifdef HYPERSIMPLEX_SHUFFLE
  if (n >= kChunk<T>) {
    for_each_tile<T>(n, [&](int64_t j, int r) {
      Vector<T> v[kChunk<T>];
      for (int i = 0; i < kChunk<T>; ++i) v[i] = load_vector(lanes + (j + i) * pitch + r);
      transpose_chunks<T>(v);
      for (int i = 0; i < kChunk<T>; ++i) store_chunks<T>(v[i], rows + (r + i) * stride + j, kChunk<T> * stride);
    });
    return;
  }
#endif
  for (int r = 0; r < kGroup; ++r)
    for (int64_t j = 0; j < n; ++j) rows[r * stride + j] = lanes[j * pitch + r];
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
