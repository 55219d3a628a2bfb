// Vectors of strided tensors as arrays of adjacent entries, for what works vector by vector. A bundle is some vectors
// that one thread takes together: neighbouring columns of a matrix, so that it is walked cache line by cache line.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "cpu/simd/half.h"
#include "cpu/simd/parallel.h"
#include "hypersimplex.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

constexpr int64_t kColumns = 32;             // of a matrix, side by side
constexpr int64_t kBundleEntries = 1 << 18;  // beyond which fewer are taken, but one
constexpr int64_t kShortEntries = 2048;      // in a bundle of short vectors

struct Arena {
  char* next;

  template <class T>
  static size_t bytes(int64_t count) {
    return (size_t(count) * sizeof(T) + 63) / 64 * 64;
  }
  template <class T>
  T* take(int64_t count) {
    T* begin = reinterpret_cast<T*>(next);
    next += bytes<T>(count);
    return begin;
  }
};

// How a call's vectors are cut into batches and these over threads.
struct RowBatches {
  Shape shape;
  int64_t n, vectors, width, count;
  int across, within;  // threads over batches, and in each

  // `adjacent`: every tensor has the entries of a vector side by side. A vector of at least `divisible` entries can
  // itself be worked on by several threads.
  RowBatches(const Shape& shape, bool adjacent, int64_t divisible, int threads)
      : shape(shape),
        n(shape.n1 * shape.n2),
        vectors(n == 0 ? 0 : shape.outer * shape.inner),
        width(1),
        count(0),
        across(1),
        within(1) {
    if (vectors == 0) return;
    width = std::max<int64_t>(1, kShortEntries / n);
    if (!adjacent) width = std::max(width, std::min(kColumns, kBundleEntries / n));
    threads = int(std::min<int64_t>(threads, 1 + vectors * n / kGrain));
    width = std::min(width, (vectors + threads - 1) / threads);
    const bool inside = n >= divisible && vectors < 2 * threads;
    if (inside) width = 1;
    count = (vectors + width - 1) / width;
    across = inside ? 1 : threads;
    within = inside ? threads : 1;
  }

  // Runs body(first, live, arena) over the batches, vectors first <= v < first + live, each thread with `bytes` of
  // memory. Nothing is allocated once threads run, so that nothing is thrown there.
  template <class Body>
  void for_each(size_t bytes, const Body& body) const {
    if (count == 0) return;
    const int64_t team = std::min<int64_t>(across, count);
    const size_t pitch = bytes + 64;
    std::unique_ptr<char[]> memory(new char[pitch * size_t(team) + 64]);
    char* aligned = memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64);
    std::atomic<int64_t> next{0};
    parallel_for(team, int(team), [&](int64_t member) {
      // Each number is handed out once, so that every batch is taken by one thread.
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;)
        body(i * width, std::min(width, vectors - i * width), Arena{aligned + pitch * size_t(member)});
    });
  }
};

// One tensor of a call. Data is `In` or `const In`; where there is no tensor, `data` is null and so are its rows.
template <class Data>
struct Tensor {
  using In = typename std::remove_const<Data>::type;
  Data* data;
  Strides strides;

  Data* vector(const Shape& shape, int64_t v) const {
    return data + v / shape.inner * strides.outer + v % shape.inner * strides.inner;
  }
  bool adjacent(const Shape& shape) const {
    return !data || ((shape.n2 == 1 || strides.n2 == 1) && (shape.n1 == 1 || strides.n1 == shape.n2));
  }
  size_t bytes(const RowBatches& batches) const {
    return adjacent(batches.shape) ? 0 : Arena::bytes<In>(batches.width * pitch(batches.n));
  }
  // Of a result that is about to be written. What is beyond malloc's largest threshold is mapped anew in every call,
  // and faults for each small page would take as long as the work.
  void prefer_large_pages(const RowBatches& batches) const {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t kMapped = uintptr_t(32) << 20, kPage = uintptr_t(2) << 20;
    const Shape& shape = batches.shape;
    const int64_t last = (shape.outer - 1) * strides.outer + (shape.inner - 1) * strides.inner +
                         (shape.n1 - 1) * strides.n1 + (shape.n2 - 1) * strides.n2;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data), bytes = sizeof(In) * uintptr_t(last + 1);
    if (!data || batches.count == 0 || bytes < kMapped) return;
    const uintptr_t first_page = (begin + kPage - 1) / kPage, end_page = (begin + bytes) / kPage;
    madvise(reinterpret_cast<void*>(first_page * kPage), (end_page - first_page) * kPage, MADV_HUGEPAGE);
#endif
  }
  // Rows that do not compete for the same places of a cache.
  static int64_t pitch(int64_t n) { return (n + 15) / 16 * 16 + 16; }
};

// A tensor's vectors in one bundle, read with load(), written with store().
template <class Data>
class GatheredRows {
 public:
  using In = typename std::remove_const<Data>::type;

  GatheredRows(const Tensor<Data>& tensor, const RowBatches& batches, int64_t first, int64_t live, Arena& arena)
      : tensor_(tensor), shape_(batches.shape), n_(batches.n), first_(first), live_(live), buffer_(nullptr) {
    if (!tensor.adjacent(shape_)) buffer_ = arena.take<In>(live * Tensor<Data>::pitch(n_));
  }
  const GatheredRows& load() const {
    for_each_entry([](In& row, const In& entry) { row = entry; });
    return *this;
  }
  void store() const {
    for_each_entry([](const In& row, In& entry) { entry = row; });
  }
  Data* operator[](int64_t i) const {
    if (!tensor_.data) return nullptr;
    return buffer_ ? buffer_ + i * Tensor<Data>::pitch(n_) : tensor_.vector(shape_, first_ + i);
  }

 private:
  template <class Move>
  void for_each_entry(const Move& move) const {
    if (!buffer_) return;
    constexpr int64_t kTile = 64;  // entries of each row, so that a tile of the rows stays near
    Data* vector[kColumns];
    for (int64_t begin = 0; begin < live_; begin += kColumns) {
      const int64_t rows = std::min(kColumns, live_ - begin);
      for (int64_t i = 0; i < rows; ++i) vector[i] = tensor_.vector(shape_, first_ + begin + i);
      In* buffer = buffer_ + begin * pitch();
      for (int64_t j1 = 0; j1 < shape_.n1; ++j1)
        for (int64_t tile = 0; tile < shape_.n2; tile += kTile) {
          const int64_t end = std::min(tile + kTile, shape_.n2);
          for (int64_t j2 = tile; j2 < end; ++j2)
            for (int64_t i = 0; i < rows; ++i)
              move(buffer[i * pitch() + j1 * shape_.n2 + j2],
                   vector[i][j1 * tensor_.strides.n1 + j2 * tensor_.strides.n2]);
        }
    }
  }
  int64_t pitch() const { return Tensor<Data>::pitch(n_); }

  const Tensor<Data> tensor_;
  const Shape shape_;
  const int64_t n_, first_, live_;
  In* buffer_;
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
