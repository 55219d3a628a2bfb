// Errors that only the data can tell.
#pragma once

#include <cstdint>

namespace hypersimplex {
namespace cpu {

[[noreturn]] void raise_out_of_bounds(int64_t class_index);  // std::out_of_range, IndexError in Python

}  // namespace cpu
}  // namespace hypersimplex
