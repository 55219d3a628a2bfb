// What the tensors and settings of every call of one loss are to be, and the arguments that its launchers get.
#pragma once

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "shard_search.h"
#include "tensor_view.h"

namespace hypersimplex {

using Sizes = std::vector<int64_t>;

// An enumeration of hypersimplex.h, whose last value is given.
template <class Enum>
Enum choice(const char* name, int value, Enum last) {
  if (value < 0 || value > int(last))
    throw py::value_error(std::string(name) + " must lie in [0, " + std::to_string(int(last)) + "], got " +
                          std::to_string(value));
  return Enum(value);
}

// The loss for one signature. Samples and classes are [N, C, d...] or [N], which is (1, C, N, prod d).
using LossTensors = std::array<Argument, 7>;  // x, state, target, k_values, tau_values, weight, sample_weight
struct LossSignature : Elements {
  LossArgs args;
  Sizes none, samples, classes, state;  // of what there is one of; per sample; per class; of the state

  LossSignature(DType dtype, const dlpack::Device& device, const Sizes& sizes, const LossArgs& settings)
      : Elements(dtype, device, sizes), args(settings) {
    if (sizes.empty()) throw py::value_error("input must have at least one dimension, got none");
    const bool binary = sizes.size() == 1;
    samples = sizes;
    if (!binary) samples.erase(samples.begin() + 1);
    classes = {binary ? 1 : sizes[1]};
    state = {kLossStateRows * classes[0] + 1};
    args.shape = {1, classes[0], sizes[0], 1};
    for (size_t d = 2; d < sizes.size(); ++d) args.shape.n2 *= sizes[d];
  }
  // The strides of what has one entry per sample and class, or per sample.
  static Strides strides_of(const TensorView& view, bool per_class) {
    const int first = per_class && view.ndim() > 1 ? 2 : 1;
    return {0, first == 2 ? view.stride(1) : 0, view.stride(0), view.collapsed(first, view.ndim())};
  }
  LossArgs at(const LossTensors& tensors, Role state_role) const {
    const bool dense = args.target_kind == TargetKind::kDense;
    LossArgs placed = args;
    const TensorView x = view("x", tensors[0], Role::kInput);
    placed.x = x.data();
    placed.x_strides = strides_of(x, true);
    if (args.target_kind != TargetKind::kNone) {
      const TensorView target("target", tensors[2], Role::kInput);
      target.require(dense ? type : kInt64, device, dense ? sizes : samples);
      placed.target = target.data();
      placed.target_strides = strides_of(target, dense);
    }
    require_given("state", tensors[1]);
    placed.state = numbers<double>("state", tensors[1], state_role, kFloat64, state);
    placed.k.values = given("k_values", tensors[3], classes);
    placed.tau.values = given("tau_values", tensors[4], classes);
    placed.weight = given("weight", tensors[5], classes);
    placed.sample_weight = given("sample_weight", tensors[6], samples);
    static const double nothing = 0;  // so that a loss is weighted also where there are no samples
    if (tensors[6] && !placed.sample_weight) placed.sample_weight = &nothing;
    return placed;
  }
  int64_t search_bytes() const { return classes[0] * int64_t(shard_search_bytes(dtype)); }
  ShardCall shard_call(int stage, const Argument& searches, const Argument& sums, Role sums_role, const Argument& after,
                       const Argument& loss, double few) const {
    ShardCall call{};
    call.stage = choice("stage", stage, ShardStage::kLoss);
    const ShardRows rows = shard_rows(call.stage);
    require_given("searches", searches);
    require_given("sums", sums);
    call.searches = numbers<char>("searches", searches, Role::kInput, kByte, {search_bytes()});
    call.sums = numbers<double>("sums", sums, sums_role, kFloat64, {rows.added + rows.greatest, classes[0]});
    call.after = numbers<int32_t>("after", after, Role::kInput, kInt32, {2});
    call.loss = numbers<void>("loss", loss, Role::kInput, type, none);
    call.few = few;
    return call;
  }

 private:
  const double* given(const char* name, const Argument& tensor, const Sizes& sizes) const {
    return numbers<const double>(name, tensor, Role::kInput, kFloat64, sizes);
  }
};

}  // namespace hypersimplex
