#include "cpu/simd/errors.h"

#include <sstream>
#include <stdexcept>
#include <string>

namespace hypersimplex {
namespace cpu {

void raise_out_of_bounds(int64_t class_index) {
  throw std::out_of_range("Target " + std::to_string(class_index) + " is out of bounds.");
}
void raise_order_out_of_range(int64_t n) {
  throw std::out_of_range("order must lie in [0, " + std::to_string(n) + ")");
}

void raise_unknown_dtype(int dtype) {
  throw std::invalid_argument("dtype must be a code from 0 to 3, got " + std::to_string(dtype));
}
void raise_too_long_to_sort(int64_t n) {
  throw std::invalid_argument("sort on the CPU takes vectors of at most 2^32 entries, got " + std::to_string(n));
}

void raise_not_in_unit_interval(double label) {
  std::ostringstream message;
  message << "target must lie in [0, 1], got " << label;
  throw std::invalid_argument(message.str());
}

FirstError::FirstError() : taken_(false) {}
FirstError::~FirstError() = default;
void FirstError::keep() noexcept {
  if (!taken_.exchange(true)) first_ = std::current_exception();
}
void FirstError::raise() const {
  if (first_) std::rethrow_exception(first_);
}

}  // namespace cpu
}  // namespace hypersimplex
