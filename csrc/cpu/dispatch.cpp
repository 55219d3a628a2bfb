// Picks, once, the clone of the hot loops for the processor at hand; HYPERSIMPLEX_ISA in the environment overrides the
// choice downwards (baseline, avx2, avx512), for tests and measurements.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/simd/float_environment.h"
#include "hypersimplex.h"

namespace hypersimplex {

namespace {
struct Clone {
  const char* name;
  void (*threshold)(const ThresholdArgs&, int);
  void (*jvp)(const JvpArgs&, int);
  void (*loss_forward)(const LossArgs&, void*, int);
  void (*loss_backward)(const LossArgs&, const LossBackward&, int);
  void (*sort)(const SortArgs&, int);
  void (*isotonic)(const IsotonicArgs&, int);
  void (*block_product)(const BlockProductArgs&, int);
};
}  // namespace

#define HYPERSIMPLEX_DECLARE(isa)                                                                    \
  namespace isa {                                                                                    \
  void threshold(const ThresholdArgs& args, int threads);                                            \
  void jvp(const JvpArgs& args, int threads);                                                        \
  void loss_forward(const LossArgs& args, void* loss, int threads);                                  \
  void loss_backward(const LossArgs& args, const LossBackward& backward, int threads);               \
  void sort(const SortArgs& args, int threads);                                                      \
  void isotonic(const IsotonicArgs& args, int threads);                                              \
  void block_product(const BlockProductArgs& args, int threads);                                     \
  }                                                                                                  \
  constexpr Clone k_##isa {                                                                          \
    #isa, isa::threshold, isa::jvp, isa::loss_forward, isa::loss_backward, isa::sort, isa::isotonic, \
        isa::block_product                                                                           \
  }

HYPERSIMPLEX_DECLARE(baseline);
#ifdef __x86_64__
HYPERSIMPLEX_DECLARE(avx2);
HYPERSIMPLEX_DECLARE(avx512);
#endif

namespace {

std::string wish() {
  const char* isa = std::getenv("HYPERSIMPLEX_ISA");
  return isa ? isa : "";
}

Clone choose(const std::string& limit) {
  if (limit != "" && limit != "baseline" && limit != "avx2" && limit != "avx512")
    throw std::invalid_argument("HYPERSIMPLEX_ISA must be baseline, avx2 or avx512, got " + limit);
#ifdef __x86_64__
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && (limit == "" || limit == "avx512")) return k_avx512;
  if (avx2 && limit != "baseline") return k_avx2;
#endif
  return k_baseline;
}

const Clone& clone() {
  static const Clone chosen = choose(wish());
  return chosen;
}

// For a loss of few logits: it would be over before a processor's widest vectors had come up to speed.
const Clone& clone(const Shape& shape) {
  constexpr int64_t kFew = 4096;
  static const Clone quick = wish() == "" ? choose("avx2") : clone();
  return shape.outer * shape.inner * shape.n1 * shape.n2 <= kFew ? quick : clone();
}

}  // namespace

namespace cpu {

void threshold(const ThresholdArgs& args, int threads) {
  const FloatEnvironment environment;
  clone().threshold(args, threads);
}
void jvp(const JvpArgs& args, int threads) {
  const FloatEnvironment environment;
  clone().jvp(args, threads);
}
void loss_forward(const LossArgs& args, void* loss, int threads) {
  const FloatEnvironment environment;
  clone(args.shape).loss_forward(args, loss, threads);
}
void loss_backward(const LossArgs& args, const LossBackward& backward, int threads) {
  const FloatEnvironment environment;
  clone(args.shape).loss_backward(args, backward, threads);
}
void sort(const SortArgs& args, int threads) {
  const FloatEnvironment environment;
  clone().sort(args, threads);
}
void isotonic(const IsotonicArgs& args, int threads) {
  const FloatEnvironment environment;
  clone().isotonic(args, threads);
}
void block_product(const BlockProductArgs& args, int threads) {
  const FloatEnvironment environment;
  clone().block_product(args, threads);
}
const char* vector_extension() { return clone().name; }

}  // namespace cpu
}  // namespace hypersimplex
