// The launchers as each instruction set compiles them, and the choice of storage type.
#pragma once

#include "cpu/simd/half.h"
#include "hypersimplex.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

void threshold(const ThresholdArgs& args, int threads);
void jvp(const JvpArgs& args, int threads);
void loss_forward(const LossArgs& args, void* loss, int threads);
void loss_backward(const LossArgs& args, const LossBackward& backward, int threads);
void sort(const SortArgs& args, int threads);
void isotonic(const IsotonicArgs& args, int threads);
void block_product(const BlockProductArgs& args, int threads);

#define HYPERSIMPLEX_DISPATCH(dtype, function, ...) \
  switch (dtype) {                                  \
    case DType::kFloat32:                           \
      return function<float>(__VA_ARGS__);          \
    case DType::kFloat64:                           \
      return function<double>(__VA_ARGS__);         \
    case DType::kFloat16:                           \
      return function<Float16>(__VA_ARGS__);        \
    case DType::kBFloat16:                          \
      return function<BFloat16>(__VA_ARGS__);       \
  }

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
