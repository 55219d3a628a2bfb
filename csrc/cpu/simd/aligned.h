// Memory of its own for some items, on cache lines and not initialised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#include "cpu/simd/isa.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

template <class T>
class Aligned {
 public:
  Aligned() = default;
  explicit Aligned(int64_t count) : items_(static_cast<T*>(::operator new(size_t(count) * sizeof(T), kLine))) {}
  Aligned(const Aligned&) = delete;
  Aligned& operator=(Aligned&& other) {
    T* const mine = items_;
    items_ = other.items_;
    other.items_ = mine;
    return *this;
  }
  ~Aligned() {
    if (items_) ::operator delete(items_, kLine);
  }
  operator T*() const { return items_; }  // null where there is none

 private:
  static constexpr std::align_val_t kLine{64};
  T* items_ = nullptr;
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
