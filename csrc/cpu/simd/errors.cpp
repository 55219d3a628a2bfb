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
