// Picks, once, the clone of the hot loops for the processor at hand; HYPERSIMPLEX_ISA in the environment overrides the
// choice downwards (baseline, avx2, avx512), for tests and measurements.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/launchers.h"
#include "cpu/simd/float_environment.h"

namespace hypersimplex {

#define HYPERSIMPLEX_POINTER(name, parameters, arguments, chosen) void(*name) parameters;
namespace {
struct Clone {
  const char* isa;
  HYPERSIMPLEX_LAUNCHERS(HYPERSIMPLEX_POINTER)
};
}  // namespace

#define HYPERSIMPLEX_ADDRESS(name, parameters, arguments, chosen) &name,
#define HYPERSIMPLEX_DECLARE(isa)                                             \
  namespace isa {                                                             \
  HYPERSIMPLEX_LAUNCHERS(HYPERSIMPLEX_DECLARE_LAUNCHER)                       \
  constexpr Clone kClone{#isa, HYPERSIMPLEX_LAUNCHERS(HYPERSIMPLEX_ADDRESS)}; \
  }

HYPERSIMPLEX_DECLARE(baseline)
#ifdef __x86_64__
HYPERSIMPLEX_DECLARE(avx2)
HYPERSIMPLEX_DECLARE(avx512)
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
  if (avx512 && (limit == "" || limit == "avx512")) return avx512::kClone;
  if (avx2 && limit != "baseline") return avx2::kClone;
#endif
  return baseline::kClone;
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

#define HYPERSIMPLEX_LAUNCH(name, parameters, arguments, chosen) \
  void name parameters {                                         \
    const FloatEnvironment environment;                          \
    (chosen).name arguments;                                     \
  }
HYPERSIMPLEX_LAUNCHERS(HYPERSIMPLEX_LAUNCH)

const char* vector_extension() { return clone().isa; }

}  // namespace cpu
}  // namespace hypersimplex
