// Errors that a kernel raises, out of line: what is compiled for one instruction set must not serve another.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>

namespace hypersimplex {
namespace cpu {

[[noreturn]] void raise_out_of_bounds(int64_t class_index);  // std::out_of_range, IndexError in Python
[[noreturn]] void raise_not_in_unit_interval(double label);  // std::invalid_argument, ValueError in Python
[[noreturn]] void raise_order_out_of_range(int64_t n);       // likewise
[[noreturn]] void raise_unknown_dtype(int dtype);            // likewise
[[noreturn]] void raise_too_long_to_sort(int64_t n);         // likewise

// The first of the exceptions that several threads meet.
class FirstError {
 public:
  FirstError();
  ~FirstError();
  void keep() noexcept;  // in a handler: the exception at hand
  void raise() const;    // after all threads are done: throws what was kept, if anything

 private:
  std::atomic<bool> taken_;
  std::exception_ptr first_;
};

}  // namespace cpu
}  // namespace hypersimplex
