// The launchers, listed once; their declarations as each instruction set compiles them; the choice of storage type.
#pragma once

#include "cpu/simd/errors.h"
#include "cpu/simd/half.h"
#include "hypersimplex.h"

// apply(name, parameters, arguments, which clone of csrc/cpu/dispatch.cpp serves them)
#define HYPERSIMPLEX_LAUNCHERS(apply)                                                                              \
  apply(threshold, (const ThresholdArgs& args, int threads), (args, threads), clone())                             \
      apply(jvp, (const JvpArgs& args, int threads), (args, threads), clone()) apply(                              \
          loss_forward, (const LossArgs& args, void* loss, int threads), (args, loss, threads), clone(args.shape)) \
          apply(loss_backward, (const LossArgs& args, const LossBackward& to, int threads), (args, to, threads),   \
                clone(args.shape)) apply(shard_sums, (const LossArgs& args, const ShardCall& call, int threads),   \
                                         (args, call, threads), clone())                                           \
              apply(sort, (const SortArgs& args, int threads), (args, threads), clone())                           \
                  apply(isotonic, (const IsotonicArgs& args, int threads), (args, threads), clone())               \
                      apply(block_product, (const BlockProductArgs& args, int threads), (args, threads), clone())

#define HYPERSIMPLEX_DECLARE_LAUNCHER(name, parameters, arguments, chosen) void name parameters;

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

HYPERSIMPLEX_LAUNCHERS(HYPERSIMPLEX_DECLARE_LAUNCHER)

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
  }                                                 \
  cpu::raise_unknown_dtype(int(dtype))

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
