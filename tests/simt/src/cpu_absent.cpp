// csrc/bindings.cpp also binds the CPU half of the native interface, which the emulator's module does not carry.
#include <stdexcept>

#include "cpu/projection/solvers/solver.h"
#include "hypersimplex.h"

namespace hypersimplex {
namespace cpu {

namespace {
[[noreturn]] void absent() { throw std::logic_error("_C_simt holds the CUDA kernels only"); }
}  // namespace

void threshold(const ThresholdArgs&, int) { absent(); }
void jvp(const JvpArgs&, int) { absent(); }
void loss_forward(const LossArgs&, void*, int) { absent(); }
void loss_backward(const LossArgs&, const LossBackward&, int) { absent(); }
void average_thresholds(const ThresholdAverage&) { absent(); }
void shard_sums(const LossArgs&, const ShardCall&, int) { absent(); }
void shard_step(const LossArgs&, const ShardCall&) { absent(); }
void sort(const SortArgs&, int) { absent(); }
void isotonic(const IsotonicArgs&, int) { absent(); }
void block_product(const BlockProductArgs&, int) { absent(); }
const char* vector_extension() { return "none"; }
void force_solver(const std::string&) { absent(); }
std::vector<std::string> take_solvers() { absent(); }

}  // namespace cpu
}  // namespace hypersimplex
