// The native interface on one page: every launcher, declared once.
//
// The core knows nothing of torch. It takes raw pointers, sizes, strides in elements and, on CUDA, a stream and
// a workspace; Python allocates, validates and owns autograd. Notation follows Gomez, Wang and Tang (arXiv
// 2602.23336): temperature tau, mass k, active set A; the threshold is kept in logit units, t = tau * lambda:
//
//     y_j = clip((x_j - t) / tau, 0, 1),    sum_j y_j = k,    A = { j : 0 < y_j < 1 }
#pragma once

#include <cstddef>
#include <cstdint>

namespace hypersimplex {

enum class DType : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

// Vectors inside a strided tensor. Vector (o, i) has n = n1 * n2 elements; element (j1, j2) of it lies at
//     o * strides.outer + i * strides.inner + j1 * strides.n1 + j2 * strides.n2.
// Vectors are numbered o * inner + i, elements j1 * n2 + j2, in everything that is stored per vector or per element.
struct Shape {
  int64_t outer, inner, n1, n2;
};
struct Strides {
  int64_t outer, inner, n1, n2;
};

// A number per vector: values[v] where values is set, else the one value.
struct PerVector {
  const double* values;  // [vectors] or null
  double value;
};

// What the solver leaves per vector, and all that a backward pass needs beside its input: the threshold as the
// unevaluated sum t = p + d, p the value of the compute type (float32, or float64 for float64 input) nearest to t,
// so that x - p is exact near the threshold whatever the scale of x. Non-finite p marks the special rows:
//     p = nan    the vector holds a NaN, k is not in [0, n] or tau no positive normal number: y is NaN
//     p = +inf   y = d where x = +inf, 0 elsewhere (k = 0, or at least k entries are +inf)
//     p = -inf   y = 1 where x > -inf, 0 elsewhere (at most k entries take part)
// In these A is empty. An entry takes part unless it is -inf. Where A is empty and p finite, t is the middle of the
// interval of thresholds that all give the same y.
struct State {
  double* p;  // [vectors]
  double* d;  // [vectors]
};

// Projection onto the (n,k)-hypersimplex, Eq. 4.3 of the paper.
struct ThresholdArgs {
  DType dtype;
  Shape shape;
  const void* x;
  Strides x_strides;
  PerVector k, tau;
  void* y;  // null: thresholds only
  Strides y_strides;
  State state;  // null, on the CPU: nobody wants it
};

// out = J v / tau with J = diag(1_A) - 1_A 1_A^T / |A|, symmetric: the JVP and the VJP of the projection in x.
// Beside it the two sums that the derivatives in k and tau need.
struct JvpArgs {
  DType dtype;
  Shape shape;
  const void* x;
  Strides x_strides;
  const void* v;
  Strides v_strides;
  State state;
  PerVector tau;
  void* out;  // null: sums only
  Strides out_strides;
  double* grad_k;    // [vectors] mean_A(v), 0 where A is empty; or null
  double* grad_tau;  // [vectors] -(1/tau) sum_A (v - mean_A v) y; or null
};

enum class TargetKind : int { kClassIndex = 0, kDense = 1, kNone = 2 };
enum class LossKind : int { kSquared = 0, kFenchelYoung = 1 };
enum class Reduction : int { kMean = 0, kSum = 1 };
// How k_c is found. kTargets: sum_i t[i,c], counted exactly. kFraction: k * samples that take part, rounded down.
enum class MassKind : int { kValue = 0, kTargets = 1, kFraction = 2 };

// Samples and classes: shape = (1, C, N, d); class c is a vector over the n = N * d samples.
// Targets t are class indices (int64, one per sample, strides n1 and n2 used, inner ignored) or dense (dtype of x,
// strides as x). Label smoothing: t <- (1 - eps) t + eps / max(C, 2). Samples whose index, and entries whose dense
// target, equals ignore_index are left out of projection, counts and mean. With s_i sample weight, w_c class weight and
// r = p - t:
//     squared:        l_ic = r^2
//     Fenchel-Young:  l_ic = (z - t)^2 / 2 - (z - p)^2 / 2,  z = x / tau
//     loss = scale * sum_ic w_c s_i l_ic,    scale = 1 / sum_ic w_c s_i  (mean, over the samples that take part)  or 1
struct LossArgs {
  DType dtype;
  Shape shape;
  const void* x;
  Strides x_strides;
  TargetKind target_kind;
  const void* target;
  Strides target_strides;
  MassKind mass_kind;
  PerVector k;  // kValue, kFraction (value only)
  PerVector tau;
  const double* weight;         // [C] or null
  const double* sample_weight;  // [n] or null
  int64_t ignore_index;
  double label_smoothing;
  LossKind kind;
  Reduction reduction;
  // Left by the forward for the backward: kLossStateRows * C numbers, then scale (loss_state.h). Rows: p, d, mean,
  // active, k, taking_part, with
  //   mean   = mean_A(s r) for the squared loss, mean_A(s) for Fenchel-Young
  //   active = |A|
  //   taking_part = number of entries that are not ignored
  double* state;
};
constexpr int kLossStateRows = 6;

// g_ic = grad_output * scale * w_c / tau_c *
//     squared:        2 * 1_A (s r - mean)
//     Fenchel-Young:  s r + 1_A (t/tau) (s - mean)                                           (t/tau = lambda)
// and 0 on ignored samples and on infinite logits.
struct LossBackward {
  const void* grad_output;  // one number, dtype of x
  void* grad;
  Strides grad_strides;
};

// The running average of the classes' thresholds t, of those that are finite:
//     batches <- batches + 1,  m = max(momentum, 1 / batches),  average <- (1 - m) average + m t
struct ThresholdAverage {
  DType dtype;  // of the average: kFloat32 or kFloat64
  int64_t classes;
  const double *p, *d;  // [C]
  void* average;        // [C]
  int64_t* batches;     // [C]
  double momentum;      // 0: the plain average
};

// ---- thresholds over samples that are spread over processes ----

// Every process holds a shard of the samples. What a stage needs of them are sums per class: each process takes those
// over its shard (shard_sums), they are combined over the processes, and each takes the same step from the same totals
// (shard_step). kMoments comes first, then kCounts until no class is pending, kEdges if a class is in a gap, and kLoss,
// once again if a class is pending. A projection has no targets (TargetKind::kNone) and no kLoss.
enum class ShardStage : int { kMoments = 0, kCounts = 1, kEdges = 2, kLoss = 3 };

struct ShardCall {
  ShardStage stage;
  void* searches;  // of the process, kept from stage to stage: csrc/shard_search.h
  double* sums;    // [rows, C] of this shard, zeroed for what it leaves out, or the totals: csrc/shard_search.h
  int32_t* after;  // [2] set by a step: classes that still search, or are pending; classes in a gap
  void* loss;      // one number, dtype of x, set by a step of kLoss
  double few;      // of fewer logits than this, in all shards, a sweep takes several thresholds at a time
};

// ---- order and isotonic regression: the paper's route (Eq. 4.4), and what a general w needs ----

// Stable sort of each vector, as torch.sort orders: nan above every number, -0 equal to 0.
struct SortArgs {
  DType dtype;
  Shape shape;
  const void* x;
  Strides x_strides;
  bool descending;
  void* values;  // or null
  Strides values_strides;
  void* order;  // place in x of each sorted element; or null
  Strides order_strides;
  bool wide_order;  // int64 rather than int32, which n < 2^31 must fit
};

// A number per element j: scale * data[j]. Without data: scale * (n - j), the ramp n, ..., 1 of the ranks.
struct IsotonicTerm {
  const void* data;  // dtype of the call
  Strides strides;
  double scale;
  bool logarithm;  // of what the above gives; not of a where the result is a - v
};

// The blocks of a vector: bit j % 32 of word [vector, j / 32] is set where a block starts, the bits behind the last
// element are not. None is set in a vector that holds a nan, an infinity or a weight of 0 or less: its results are nan.
using Blocks = uint32_t;  // [vectors, ceil(n / 32)]

enum class Divergence : int { kL2 = 0, kKL = 1 };
// What is stored, with v the regression: v; a - v; or exp(a - v).
enum class IsotonicResult : int { kRegression = 0, kPrimal = 1, kExpPrimal = 2 };

// Isotonic regression by pooling adjacent violators: v is constant on each block B of adjacent elements, with
//     L2:  v_B = sum_B w (a - b) / sum_B w              argmin sum_j w_j (a_j - b_j - v_j)^2
//     KL:  v_B = log sum_B exp(a) - log sum_B exp(b)    argmin sum_j exp(a_j - v_j) + exp(b_j) v_j
// over v_1 >= ... >= v_n, or <= where `increasing` (L2). For a - v, a and b must not increase. Blondel et al., "Fast
// Differentiable Sorting and Ranking", arXiv 2002.08871. For KL, a and b must not increase.
struct IsotonicArgs {
  DType dtype;
  Shape shape;
  Divergence divergence;
  bool increasing;
  IsotonicTerm a, b;
  const void* weight;  // w > 0, dtype of the call, L2; or null: 1
  Strides weight_strides;
  IsotonicResult result;
  double scale;  // of the result
  void* out;
  Strides out_strides;
  const int32_t* order;  // element j of the result is stored at order[j]; or null: at j
  Strides order_strides;
  void* share;  // exp(b_j) / sum_B exp(b), dtype of the call, KL; or null
  Strides share_strides;
  Blocks* blocks;
};

// Products with the Jacobians of what IsotonicArgs computes; M_B v = sum_B w v / sum_B w.
enum class BlockProduct : int {
  kMean = 0,        // M_B v
  kRatio = 1,       // sum_B v / sum_B w
  kTransposed = 2,  // w sum_B v / sum_B w, the transpose of kMean
  kResidual = 3,    // w (v - M_B v), its own transpose
};
// An element in sorted place j lies at j, or at order[j].
struct Placed {
  void* data;
  Strides strides;
  bool ordered;
};
struct BlockProductArgs {
  DType dtype;
  Shape shape;
  BlockProduct product;
  Placed v;
  Placed weight;  // data null: 1
  Placed out;
  double scale;          // of the result
  const int32_t* order;  // or null, and nothing is ordered
  Strides order_strides;
  const Blocks* blocks;
};

namespace cpu {
void threshold(const ThresholdArgs& args, int threads);
void jvp(const JvpArgs& args, int threads);
void loss_forward(const LossArgs& args, void* loss /* one number, dtype of x */, int threads);
void loss_backward(const LossArgs& args, const LossBackward& backward, int threads);
void average_thresholds(const ThresholdAverage& average);
void shard_sums(const LossArgs& args, const ShardCall& call, int threads);
void shard_step(const LossArgs& args, const ShardCall& call);
void sort(const SortArgs& args, int threads);
void isotonic(const IsotonicArgs& args, int threads);
void block_product(const BlockProductArgs& args, int threads);
const char* vector_extension();  // the clone of the hot loops chosen at run time
}  // namespace cpu

#ifdef HYPERSIMPLEX_WITH_CUDA
namespace cuda {
// `stream` is a cudaStream_t on the current device; nothing synchronises with the host and nothing is allocated.
// The *_workspace functions tell how many bytes of device memory the call needs beside its arguments.
size_t threshold_workspace(const ThresholdArgs& args);
void threshold(const ThresholdArgs& args, void* workspace, void* stream);
size_t jvp_workspace(const JvpArgs& args);
void jvp(const JvpArgs& args, void* workspace, void* stream);
size_t loss_forward_workspace(const LossArgs& args);
void loss_forward(const LossArgs& args, void* loss /* one number, dtype of x */, void* workspace, void* stream);
void loss_backward(const LossArgs& args, const LossBackward& backward, void* stream);
void average_thresholds(const ThresholdAverage& average, void* stream);
size_t shard_sums_workspace(const LossArgs& args);
void shard_sums(const LossArgs& args, const ShardCall& call, void* workspace, void* stream);
void shard_step(const LossArgs& args, const ShardCall& call, void* stream);
size_t sort_workspace(const SortArgs& args);
void sort(const SortArgs& args, void* workspace, void* stream);
size_t isotonic_workspace(const IsotonicArgs& args);
void isotonic(const IsotonicArgs& args, void* workspace, void* stream);
size_t block_product_workspace(const BlockProductArgs& args);
void block_product(const BlockProductArgs& args, void* workspace, void* stream);
}  // namespace cuda
#endif

}  // namespace hypersimplex
