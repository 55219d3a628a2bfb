// The samples of a loss as panels need them: logits with ignored samples or entries left out, blocks of targets from
// class indices or dense rows, label smoothing, sample weights, and the mass k of every class.
#pragma once

#include <memory>

#include "cpu/projection/loss_sweeps.h"
#include "cpu/projection/panel.h"
#include "cpu/simd/errors.h"
#include "loss_state.h"
#include "newton.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

template <class In>
class LossBatch {
 public:
  using T = Compute<In>;

  explicit LossBatch(const LossArgs& args)
      : args_(args),
        n_(args.shape.n1 * args.shape.n2),
        classes_(args.shape.inner),
        keep_(1 - args.label_smoothing),
        off_(smoothing_off(args)),
        flat_(args.shape.n1 == 1 || args.target_strides.n1 == args.shape.n2 * args.target_strides.n2),
        ignored_label_(as_label(double(args.ignore_index))) {}

  bool weighted() const { return args_.sample_weight != nullptr; }
  // Of the samples that take part in a class.
  double total_weight(int64_t v) const { return dense() ? class_weights_[v] : total_weight_; }
  bool dense() const { return args_.target_kind == TargetKind::kDense; }

  // Whether the mass of a class tells how many of the samples bear its label.
  bool countable() const { return !dense() && is_balanced(args_); }
  // Of a sample that takes part, where there are class indices.
  T target_of_label(bool bears) const { return bears ? T(off_ + keep_) : T(off_); }
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
  bool ignored(const Panel& panel, int column, int64_t j) const {
    return dense() ? label(panel, column, j) == ignored_label_ : index(j) == args_.ignore_index;
  }
  double weight(int64_t j) const { return weighted() ? args_.sample_weight[j] : 1; }
  double target(const Panel& panel, int column, int64_t j) const {
    if (ignored(panel, column, j)) return 0;
    return off_ + keep_ * (dense() ? double(label(panel, column, j)) : index(j) == panel.vector(column));
  }

  // Checks the class indices, counts them per class where the masses need it, and sums the weights of the samples that
  // take part. Dense targets are left to masses().
  void count(double* counts) {
    if (dense()) {
      class_weights_.reset(new double[classes_]);
      return;
    }
    int64_t taking_part = 0;
    double weights = 0;
    bool wanted = args_.mass_kind == MassKind::kTargets;
    for (int64_t c = 0; wanted && c < classes_; ++c) counts[c] = 0;
    for (int64_t j = 0; j < n_; ++j) {
      int64_t label = index(j);
      if (label == args_.ignore_index) continue;
      if (label < 0 || label >= classes_) cpu::raise_out_of_bounds(label);
      if (wanted) counts[label] += 1;
      ++taking_part;
      weights += weight(j);
    }
    taking_part_ = taking_part;
    total_weight_ = weighted() ? weights : double(taking_part_);
  }

  // k of the panel's classes, where `masses` holds what count() left, and the numbers of entries that take part.
  // Returns whether some entries are ignored.
  bool masses(const Panel& panel, int threads, double* masses, double* numbers) {
    const bool some_ignored = tally(panel, threads, masses, numbers);
    for (int c = 0; c < panel.live; ++c) masses[c] = class_mass(args_, panel.vector(c), masses[c], numbers[c]);
    return some_ignored;
  }
  // The same, but the sums of the targets in place of k: of class indices as count() left them.
  bool tally(const Panel& panel, int threads, double* sums, double* numbers) {
    const int64_t first = panel.vector(0);
    const Scratch<LaneSums> found;
    if (dense()) {
      sweep(panel.plan, threads, *found, [&](int64_t step, int64_t steps, LaneSums& out) {
        const ScratchArray<T> buffer(kBlock);
        View<const T> block = fetch(panel, dense_operand(panel), step, steps, ignored_label_, buffer);
        sweep_labels(block.at, steps, block.stride, panel.lanes(), ignored_label_, out);
      });
    }
    bool some_ignored = false;
    for (int c = 0; c < panel.live; ++c) {
      const double taking_part = dense() ? found->b[c] : double(taking_part_);
      some_ignored |= taking_part < double(n_);
      numbers[c] = taking_part;
      if (dense()) {
        if (found->c[c] > 0) raise_out_of_range(panel, c);
        class_weights_[first + c] = weighted() ? sum_weights(panel, c) : taking_part;
        sums[c] = found->a[c];
      }
    }
    return some_ignored;
  }

  // Logits; those that take no part are -inf.
  View<const T> entries(const Panel& panel, const Operand<const In>& x, int64_t step, int64_t steps, bool some_ignored,
                        T* buffer) const {
    if (!some_ignored) return fetch(panel, x, step, steps, -T(HUGE_VAL), buffer);
    gather(panel, x, step, steps, -T(HUGE_VAL), buffer);
    for_each_ignored(panel, step, steps, [&](int64_t e) { buffer[e] = -T(HUGE_VAL); });
    return {buffer, panel.plan.width};
  }

  // What the sums of the loss and its gradient read of a block. Where an entry is ignored, its target and its weight
  // are 0.
  struct Block {
    View<const T> x, target;
    const T* weight;           // by lane, [steps, width]; anything readable where there are none
    const Count<T>* labelled;  // the lane of each row that bears a label, in place of `target`; or null
  };
  // read(step, steps, some_ignored, buffer) gives the logits, and those that take no part as entries() does.
  template <class Read>
  Block block(const Panel& panel, const Read& read, int64_t step, int64_t steps, T* x_buffer, T* target_buffer,
              T* weight_buffer) const {
    if (by_label(panel)) {
      Count<T>* const labelled = reinterpret_cast<Count<T>*>(target_buffer);
      const int64_t first = panel.vector(0);
      bool all = true;
      for (int64_t s = 0; s < steps; ++s) {
        const int64_t index = this->index(step + s);
        all &= index != args_.ignore_index;
        labelled[s] = index == args_.ignore_index ? Count<T>(-1) : Count<T>(index - first);
      }
      if (all || off_ == 0) return {read(step, steps, !all, x_buffer), {}, weight_buffer, labelled};
    }
    bool some_ignored = false;
    const View<const T> target = targets(panel, step, steps, target_buffer, some_ignored);
    if (weighted()) fill_weights(panel, step, steps, some_ignored, weight_buffer);
    return {read(step, steps, some_ignored, x_buffer), target, weight_buffer, nullptr};
  }
  // What a sweep is to take for the targets of a block by label.
  LabelTargets<T> by_label(const Block& block) const {
    return {block.labelled, target_of_label(true), target_of_label(false)};
  }

 private:
  bool by_label(const Panel& panel) const {
    return !dense() && !weighted() && panel.plan.side_by_side() && classes_ < (int64_t(1) << 30);
  }
  static T as_label(double number) {  // rounded as targets are
    In label;
    store(T(number), label);
    return load(label);
  }
  T label(const Panel& panel, int column, int64_t j) const {
    return load(*dense_operand(panel).entry(args_.shape, column, j));
  }

  // body(e) for the places in a gathered block of all entries that are ignored.
  template <class Body>
  void for_each_ignored(const Panel& panel, int64_t step, int64_t steps, const Body& body) const {
    const int columns = panel.plan.columns;
    if (dense()) {
      const Operand<const In> labels = dense_operand(panel);
      labels.for_each_run(panel, step, steps, [&](int64_t first, int64_t count, const In* in) {
        for (int64_t j = 0; j < count; ++j)
          for (int c = 0; c < panel.live; ++c)
            if (load(in[j * labels.n2 + c * labels.lane]) == ignored_label_) body((first + j) * columns + c);
      });
      return;
    }
    const int64_t begin = step * panel.plan.entries_per_step();
    const int64_t end = smaller(begin + steps * panel.plan.entries_per_step(), n_);
    for (int64_t j = begin; j < end; ++j)
      if (index(j) == args_.ignore_index)
        for (int c = 0; c < columns; ++c) body((j - begin) * columns + c);
  }

  void fill_weights(const Panel& panel, int64_t step, int64_t steps, bool some_ignored, T* buffer) const {
    const Plan& plan = panel.plan;
    int64_t begin = step * plan.entries_per_step();
    for (int64_t j = 0; j < steps * plan.entries_per_step(); ++j) {
      T weight = begin + j < n_ ? T(args_.sample_weight[begin + j]) : T(0);
      for (int c = 0; c < plan.columns; ++c) buffer[j * plan.columns + c] = weight;
    }
    if (some_ignored) for_each_ignored(panel, step, steps, [&](int64_t e) { buffer[e] = 0; });
  }

  double sum_weights(const Panel& panel, int column) const {
    double sum = 0;
    for (int64_t j = 0; j < n_; ++j)
      if (!ignored(panel, column, j)) sum += args_.sample_weight[j];
    return sum;
  }

  [[noreturn]] void raise_out_of_range(const Panel& panel, int column) const {
    for (int64_t j = 0;; ++j) {
      const T label = this->label(panel, column, j);
      if (label != ignored_label_ && (label < 0 || label > 1)) cpu::raise_not_in_unit_interval(double(label));
    }
  }

  Operand<const In> dense_operand(const Panel& panel) const {
    return {static_cast<const In*>(args_.target), args_.target_strides, panel};
  }

  // The targets of one class; whether some samples are ignored.
  bool fill_class(int64_t v, int64_t begin, int64_t count, T* buffer) const {
    const T rest = target_of_label(false), label = target_of_label(true);
    const int64_t none = args_.ignore_index;
    int64_t ignored = 0;
    auto fill = [&](const auto& index_of) {
      for (int64_t j = 0; j < count; ++j) {
        const int64_t index = index_of(j);
        buffer[j] = index == none ? T(0) : index == v ? label : rest;
        ignored |= index == none;
      }
    };
    const int64_t* const indices = static_cast<const int64_t*>(args_.target) + begin;
    if (flat_ && args_.target_strides.n2 == 1)
      fill([&](int64_t j) { return indices[j]; });
    else
      fill([&](int64_t j) { return index(begin + j); });
    return ignored != 0;
  }

  // off + keep * label, and whether some entries are ignored.
  View<const T> targets(const Panel& panel, int64_t step, int64_t steps, T* buffer, bool& some_ignored) const {
    const Plan& plan = panel.plan;
    const int64_t entries = steps * plan.entries_per_step(), begin = step * plan.entries_per_step();
    const int64_t real = smaller(entries, n_ - begin);
    const T rest = T(off_), label = T(off_ + keep_);
    if (dense()) {
      const View<const T> labels = fetch(panel, dense_operand(panel), step, steps, T(0), buffer);
      some_ignored = contains(labels.at, steps, labels.stride, panel.lanes(), ignored_label_);
      if (off_ == 0 && !some_ignored) return labels;
      if (labels.at != buffer) gather(panel, dense_operand(panel), step, steps, T(0), buffer);
      for (int64_t e = 0; e < real * plan.columns; ++e)
        buffer[e] = buffer[e] == ignored_label_ ? T(0) : T(off_ + keep_ * buffer[e]);
    } else if (plan.columns == 1) {
      some_ignored = fill_class(panel.vector(0), begin, real, buffer);
    } else {
      for (int64_t e = 0; e < real * plan.columns; ++e) buffer[e] = rest;
      const int64_t first = panel.vector(0);
      for (int64_t j = 0; j < real; ++j) {
        int64_t index = this->index(begin + j), column = index - first;
        if (column >= 0 && column < plan.columns) buffer[j * plan.columns + column] = label;
        if (index != args_.ignore_index) continue;
        some_ignored = true;
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
  const T ignored_label_;  // among dense targets
  int64_t taking_part_ = 0;
  double total_weight_ = 0;
  std::unique_ptr<double[]> class_weights_;  // of the samples that take part, beside dense targets
};

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
