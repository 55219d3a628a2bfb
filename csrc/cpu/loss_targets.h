// The samples of a loss as panels need them: logits with ignored samples left out, blocks of targets from class indices
// or dense rows, label smoothing, sample weights, and the mass k of every class.
#pragma once

#include "errors.h"
#include "panel.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

template <class In>
class Samples {
 public:
  using T = Compute<In>;

  explicit Samples(const LossArgs& args)
      : args_(args),
        n_(args.shape.n1 * args.shape.n2),
        classes_(args.shape.inner),
        keep_(1 - args.label_smoothing),
        off_(args.label_smoothing / double(classes_ > 2 ? classes_ : 2)),
        flat_(args.shape.n1 == 1 || args.target_strides.n1 == args.shape.n2 * args.target_strides.n2) {}

  bool weighted() const { return args_.sample_weight != nullptr; }
  // Whether sum (y - target) is zero by construction.
  bool balanced() const { return args_.mass_kind == MassKind::kTargets && !weighted(); }
  double total_weight() const { return total_weight_; }
  bool dense() const { return args_.target_kind == TargetKind::kDense; }

  // Whether the mass of a class tells how many of the samples bear its label.
  bool countable() const { return !dense() && args_.mass_kind == MassKind::kTargets && !weighted(); }
  // The sum of a class's squared targets, by its mass.
  double sum_squares(double mass) const {
    const double bearing = keep_ > 0 ? nearbyint((mass - off_ * double(taking_part_)) / keep_) : 0;
    const double rest = T(off_), label = T(off_ + keep_);
    return bearing * label * label + (double(taking_part_) - bearing) * rest * rest;
  }

  int64_t index(int64_t j) const {
    const int64_t* indices = static_cast<const int64_t*>(args_.target);
    const Strides& strides = args_.target_strides;
    if (flat_) return indices[j * strides.n2];
    return indices[(j / args_.shape.n2) * strides.n1 + (j % args_.shape.n2) * strides.n2];
  }
  bool ignored(int64_t j) const { return !dense() && index(j) == args_.ignore_index; }
  double weight(int64_t j) const { return weighted() ? args_.sample_weight[j] : 1; }
  double target(const Panel& panel, int column, int64_t j) const {
    if (!dense()) return ignored(j) ? 0 : off_ + (index(j) == panel.vector(column) ? keep_ : 0);
    return off_ + keep_ * load(*dense_operand(panel).entry(args_.shape, column, j));
  }

  // Checks the class indices, counts them per class where the masses need it, and sums the weights of the samples that
  // take part.
  void count(double* counts) {
    int64_t taking_part = 0;
    double weights = 0;
    bool wanted = !dense() && args_.mass_kind == MassKind::kTargets;
    for (int64_t c = 0; wanted && c < classes_; ++c) counts[c] = 0;
    for (int64_t j = 0; (!dense() || weighted()) && j < n_; ++j) {
      if (!dense()) {
        int64_t label = index(j);
        if (label == args_.ignore_index) continue;
        if (label < 0 || label >= classes_) cpu::raise_out_of_bounds(label);
        if (wanted) counts[label] += 1;
      }
      ++taking_part;
      weights += weight(j);
    }
    taking_part_ = dense() ? n_ : taking_part;
    total_weight_ = weighted() ? weights : double(taking_part_);
  }

  // k of the panel's classes; `masses` holds what count() left.
  void masses(const Panel& panel, int threads, double* masses) const {
    const int64_t first = panel.vector(0);
    if (args_.mass_kind == MassKind::kTargets && dense()) {
      const Scratch<LaneSums> sums;
      sweep(panel.plan, threads, *sums, [&](int64_t step, int64_t steps, LaneSums& out) {
        const ScratchArray<T> buffer(kBlock);
        View<const T> block = targets(panel, step, steps, buffer, 1, 0);
        sweep_sum(block.at, steps, block.stride, panel.plan.width, out);
      });
      for (int c = 0; c < panel.live; ++c) masses[c] = sums->a[c];
    }
    for (int c = 0; c < panel.live; ++c) {
      if (args_.mass_kind == MassKind::kTargets)
        masses[c] = off_ == 0 ? masses[c] : keep_ * masses[c] + off_ * double(taking_part_);
      else if (args_.mass_kind == MassKind::kFraction)
        masses[c] = floor(args_.k.value * double(taking_part_));
      else
        masses[c] = args_.k.values ? args_.k.values[first + c] : args_.k.value;
    }
  }

  View<const T> entries(const Panel& panel, const Operand<const In>& x, int64_t step, int64_t steps, T* buffer) const {
    if (dense()) return fetch(panel, x, step, steps, -T(HUGE_VAL), buffer);
    int64_t per_step = panel.plan.entries_per_step();
    int64_t begin = step * per_step, end = smaller(begin + steps * per_step, n_);
    int64_t j = begin;
    while (j < end && !ignored(j)) ++j;
    if (j == end) return fetch(panel, x, step, steps, -T(HUGE_VAL), buffer);
    gather(panel, x, step, steps, -T(HUGE_VAL), buffer);
    for (; j < end; ++j)
      if (ignored(j))
        for (int c = 0; c < panel.plan.columns; ++c) buffer[(j - begin) * panel.plan.columns + c] = -T(HUGE_VAL);
    return {buffer, panel.plan.width};
  }

  View<const T> targets(const Panel& panel, int64_t step, int64_t steps, T* buffer) const {
    return targets(panel, step, steps, buffer, keep_, off_);
  }

  // Sample weights by lane, [steps, width]; anything readable where there are none.
  const T* weights(const Panel& panel, int64_t step, int64_t steps, T* buffer) const {
    if (!weighted()) return buffer;
    const Plan& plan = panel.plan;
    int64_t begin = step * plan.entries_per_step();
    for (int64_t j = 0; j < steps * plan.entries_per_step(); ++j) {
      T weight = begin + j < n_ ? T(args_.sample_weight[begin + j]) : T(0);
      for (int c = 0; c < plan.columns; ++c) buffer[j * plan.columns + c] = weight;
    }
    return buffer;
  }

 private:
  Operand<const In> dense_operand(const Panel& panel) const {
    return {static_cast<const In*>(args_.target), args_.target_strides, panel};
  }

  // off + keep * target
  View<const T> targets(const Panel& panel, int64_t step, int64_t steps, T* buffer, double keep, double off) const {
    const Plan& plan = panel.plan;
    if (dense() && off == 0) return fetch(panel, dense_operand(panel), step, steps, T(0), buffer);
    const int64_t entries = steps * plan.entries_per_step(), begin = step * plan.entries_per_step();
    const int64_t real = smaller(entries, n_ - begin);
    const T rest = T(off), label = T(off + keep);
    if (dense()) {
      gather(panel, dense_operand(panel), step, steps, T(0), buffer);
      for (int64_t e = 0; e < real * plan.columns; ++e) buffer[e] = T(off + keep * buffer[e]);
    } else {
      for (int64_t e = 0; e < real * plan.columns; ++e) buffer[e] = rest;
      const int64_t first = panel.vector(0);
      for (int64_t j = 0; j < real; ++j) {
        int64_t index = this->index(begin + j), column = index - first;
        if (column >= 0 && column < plan.columns) buffer[j * plan.columns + column] = label;
        if (index == args_.ignore_index)
          for (int c = 0; c < plan.columns; ++c) buffer[j * plan.columns + c] = 0;
      }
    }
    for (int64_t e = real * plan.columns; e < steps * plan.width; ++e) buffer[e] = 0;
    return {buffer, plan.width};
  }

  const LossArgs& args_;
  const int64_t n_, classes_;
  const double keep_, off_;
  const bool flat_;
  int64_t taking_part_ = 0;
  double total_weight_ = 0;
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
