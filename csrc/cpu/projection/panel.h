// How vectors in a strided tensor are laid on lanes, as plan.h plans it. A panel holds `columns` vectors and `width`
// lanes, columns a divisor of width; lane l of step s is entry s * (width / columns) + l / columns of vector
// l % columns. With 3 columns a, b, c of 6 entries on 6 lanes, and with one vector a of 12 entries:
//
//             lanes                                     lanes
//     step 0  a0 b0 c0 a1 b1 c1                 step 0  a0 a1 a2 a3  a4  a5
//     step 1  a2 b2 c2 a3 b3 c3                 step 1  a6 a7 a8 a9 a10 a11
//     step 2  a4 b4 c4 a5 b5 c5
//
// Steps make blocks, whose sums are kept in T; blocks make chunks, where threads may part. Where a block lies in memory
// just so, the loops of sweeps.h run on it in place; else (halves, strides, ends, entries left out) it is copied into a
// small buffer first, padded with an entry that takes no part.
#pragma once

#include "cpu/projection/plan.h"
#include "cpu/simd/parallel.h"
#include "cpu/simd/scratch.h"
#include "cpu/simd/transpose.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

struct Panel {
  const Plan& plan;
  int64_t index;
  int64_t line, lane;  // of the first vector
  int live;            // vectors that exist; the columns behind them are padding

  Panel(const Plan& plan, int64_t index)
      : plan(plan),
        index(index),
        line(index / plan.panels_per_line),
        lane(index % plan.panels_per_line * plan.columns) {
    live = int(smaller(plan.columns, plan.lane_count - lane));
  }
  // Lanes whose results count, and in whole groups those to be computed with.
  int live_lanes() const { return plan.side_by_side() ? live : plan.width; }
  int lanes() const { return int(ceil_div(live_lanes(), kGroup)) * kGroup; }
  int64_t vector(int column) const { return line * plan.lane_count + lane + column; }
};

// One tensor as a panel sees it. Data is `const In` or `In`.
template <class Data>
struct Operand {
  Data* at;  // entry 0 of the panel's first vector
  int64_t lane, n1, n2;

  Operand(Data* data, const Strides& strides, const Panel& panel) : n1(strides.n1), n2(strides.n2) {
    lane = panel.plan.lanes_outer ? strides.outer : strides.inner;
    at = data + panel.line * (panel.plan.lanes_outer ? 0 : strides.outer) + panel.lane * lane;
  }
  bool flat(const Shape& shape) const { return shape.n1 == 1 || n1 == shape.n2 * n2; }
  Data* entry(const Shape& shape, int column, int64_t j) const {
    return at + column * lane + (j / shape.n2) * n1 + (j % shape.n2) * n2;
  }
  // Whether the block's rows of lanes lie in memory as they are, `stride()` apart. Lanes behind the live columns hold
  // what follows in memory, the beginning of the next row.
  bool direct(const Panel& panel, int64_t step, int64_t steps) const {
    const Plan& plan = panel.plan;
    bool row = (plan.columns == 1 || lane == 1) && (plan.columns == plan.width || n2 == plan.columns);
    const int lanes = plan.in_matrix ? panel.lanes() : plan.columns;
    const bool full = panel.live == lanes;
    const bool beyond = (step + steps) * plan.entries_per_step() >= plan.n + full;
    return row && flat(plan.shape) && !beyond && (full || (plan.in_matrix && n2 >= lanes - panel.live));
  }
  int64_t stride(const Plan& plan) const { return plan.columns == plan.width ? n2 : plan.width; }

  // Calls body(first, count, entries): entries j of the block, `first` from its start, that lie n2 apart from
  // `entries`.
  template <class Body>
  void for_each_run(const Panel& panel, int64_t step, int64_t steps, const Body& body) const {
    const Plan& plan = panel.plan;
    int64_t begin = step * plan.entries_per_step(), end = smaller(begin + steps * plan.entries_per_step(), plan.n);
    int64_t segment = flat(plan.shape) ? plan.n : plan.shape.n2;
    for (int64_t j = begin; j < end;) {
      int64_t count = smaller(segment - j % segment, end - j);
      body(j - begin, count, at + (j / segment) * n1 + (j % segment) * n2);
      j += count;
    }
  }
};

template <class T>
struct View {
  T* at;
  int64_t stride;
};

template <class In>
static inline bool plain(const In*) {
  return false;
}
static inline bool plain(const float*) { return true; }
static inline bool plain(const double*) { return true; }
// Rows side by side, which registers can transpose.
template <class Data>
static inline bool rows(const Panel& panel, const Operand<Data>& operand) {
  return plain(operand.at) && operand.n2 == 1 && panel.plan.columns % kGroup == 0 && panel.live == panel.plan.columns;
}

// body(c) for every c < count, in whole groups as far as there are any, which compilers turn into vectors.
template <class Body>
static inline void by_groups(int count, const Body& body) {
  int c = 0;
  for (; c + kGroup <= count; c += kGroup)
    for (int l = 0; l < kGroup; ++l) body(c + l);
  for (; c < count; ++c) body(c);
}

// The block in the buffer, [steps, width]; entry j of column c lies at j * columns + c.
template <class In, class T>
static void gather(const Panel& panel, const Operand<const In>& from, int64_t step, int64_t steps, T padding,
                   T* buffer) {
  int columns = panel.plan.columns, live = panel.live;
  int64_t filled = 0;
  from.for_each_run(panel, step, steps, [&](int64_t first, int64_t count, const In* in) {
    T* out = buffer + first * columns;
    filled = first + count;
    if (live == columns && (columns == 1 || from.lane == 1) && from.n2 == columns) {
      for (int64_t e = 0; e < count * columns; ++e) out[e] = load(in[e]);
    } else if (rows(panel, from)) {
      for (int g = 0; g < columns; g += kGroup)
        rows_to_lanes(reinterpret_cast<const T*>(in + g * from.lane), from.lane, count, out + g, columns);
    } else if (from.lane == 1) {
      for (int64_t j = 0; j < count; ++j)
        by_groups(live, [&](int c) { out[j * columns + c] = load(in[j * from.n2 + c]); });
    } else if (from.lane < from.n2) {
      for (int64_t j = 0; j < count; ++j)
        for (int c = 0; c < live; ++c) out[j * columns + c] = load(in[j * from.n2 + c * from.lane]);
    } else {
      for (int c = 0; c < live; ++c)
        for (int64_t j = 0; j < count; ++j) out[j * columns + c] = load(in[j * from.n2 + c * from.lane]);
    }
    for (int64_t j = 0; live < columns && j < count; ++j)
      for (int c = live; c < columns; ++c) out[j * columns + c] = padding;
  });
  for (int64_t e = filled * columns; e < steps * panel.plan.width; ++e) buffer[e] = padding;
}

template <class In, class T>
static void scatter(const Panel& panel, const Operand<In>& to, int64_t step, int64_t steps, const T* buffer) {
  int columns = panel.plan.columns, live = panel.live;
  to.for_each_run(panel, step, steps, [&](int64_t first, int64_t count, In* out) {
    const T* in = buffer + first * columns;
    if (live == columns && (columns == 1 || to.lane == 1) && to.n2 == columns) {
      for (int64_t e = 0; e < count * columns; ++e) store(in[e], out[e]);
    } else if (rows(panel, to)) {
      for (int g = 0; g < columns; g += kGroup)
        lanes_to_rows(in + g, columns, count, reinterpret_cast<T*>(out + g * to.lane), to.lane);
    } else if (to.lane == 1) {
      for (int64_t j = 0; j < count; ++j)
        by_groups(live, [&](int c) { store(in[j * columns + c], out[j * to.n2 + c]); });
    } else if (to.lane < to.n2) {
      for (int64_t j = 0; j < count; ++j)
        for (int c = 0; c < live; ++c) store(in[j * columns + c], out[j * to.n2 + c * to.lane]);
    } else {
      for (int c = 0; c < live; ++c)
        for (int64_t j = 0; j < count; ++j) store(in[j * columns + c], out[j * to.n2 + c * to.lane]);
    }
  });
}

template <class In>
static View<const Compute<In>> fetch(const Panel& panel, const Operand<const In>& from, int64_t step, int64_t steps,
                                     Compute<In> padding, Compute<In>* buffer) {
  using T = Compute<In>;
  if (plain(from.at) && from.direct(panel, step, steps)) {
    int64_t stride = from.stride(panel.plan);
    return {reinterpret_cast<const T*>(from.at) + step * stride, stride};
  }
  gather(panel, from, step, steps, padding, buffer);
  return {buffer, panel.plan.width};
}

// Where a block's results go: in place, or into the buffer, which deliver() then scatters.
template <class In, class T>
static View<T> destination(const Panel& panel, const Operand<In>& to, int64_t step, int64_t steps, T* buffer) {
  if (plain(to.at) && to.direct(panel, step, steps)) {
    int64_t stride = to.stride(panel.plan);
    return {reinterpret_cast<T*>(to.at) + step * stride, stride};
  }
  return {buffer, panel.plan.width};
}
template <class In, class T>
static void deliver(const Panel& panel, const Operand<In>& to, int64_t step, int64_t steps, const View<T>& from,
                    const T* buffer) {
  if (from.at == buffer) scatter(panel, to, step, steps, buffer);
}

// Blocks of a chunk; a last step that is not full makes one of its own, so that all others can be used in place.
template <class Body>
static void for_each_block(const Plan& plan, int64_t chunk, const Body& body) {
  int64_t end = smaller((chunk + 1) * plan.chunk_steps, plan.steps), full = smaller(end, plan.full_steps);
  for (int64_t s = chunk * plan.chunk_steps; s < full; s += plan.block_steps)
    body(s, smaller(plan.block_steps, full - s));
  if (full < end) body(full, end - full);
}

// Blocks of a few rows each, for `panels` of them in turn: so a wide matrix is walked row by row.
template <class Body>
static void for_each_rows(const Plan& plan, int64_t panels, const Body& body) {
  const int64_t few = kBlock / (panels * plan.width), rows = smaller(few > kFewRows ? few : kFewRows, plan.block_steps);
  for (int64_t chunk = 0; chunk < plan.chunks; ++chunk)
    for_each_block(plan, chunk, [&](int64_t step, int64_t steps) {
      for (int64_t s = step; s < step + steps; s += rows) body(s, smaller(rows, step + steps - s));
    });
}

// Runs body(step, steps, accumulator) over all blocks of a panel and leaves the totals by column in `total`. The
// chunks' totals are merged in order, whoever computed them: all together where there are threads, else one by one.
template <class Accumulator, class Body>
static void sweep(const Plan& plan, int threads, Accumulator& total, const Body& body) {
  auto run = [&](int64_t chunk, Accumulator& out) {
    out.clear(plan.width);
    for_each_block(plan, chunk, [&](int64_t step, int64_t steps) { body(step, steps, out); });
    out.fold(plan.width, plan.columns);
  };
  if (plan.chunks == 1) return run(0, total);
  const int64_t round = threads > 1 ? plan.chunks : 1;
  const ScratchArray<Accumulator> partial(round);
  total.clear(plan.columns);
  for (int64_t first = 0; first < plan.chunks; first += round) {
    walk_parts(round, threads, Walk::kForwards, [&](int64_t j, int64_t) { run(first + j, partial[j]); });
    for (int64_t j = 0; j < round; ++j) total.merge(partial[j], plan.columns);
  }
}

template <class Body>
static void for_each_chunk(const Plan& plan, int threads, const Body& body) {
  walk_parts(plan.chunks, threads, Walk::kBackwards,
             [&](int64_t chunk, int64_t) { for_each_block(plan, chunk, body); });
}

// As many threads as the work is worth.
static inline int threads_for(const Plan& plan, int threads) {
  return int(smaller(threads, 1 + plan.panels * plan.n * plan.columns / kGrain));
}

// Whether each thread has panels of its own; else all of them work on one together.
static inline bool panels_go_round(const Plan& plan, int threads) {
  return plan.panels >= (plan.in_matrix ? 1 : 2) * threads || plan.chunks == 1;
}

// Runs body(panel, threads): panels side by side where there are enough of them, else each over all threads.
template <class Body>
static void for_each_panel(const Plan& plan, int threads, const Body& body) {
  threads = threads_for(plan, threads);
  bool across = panels_go_round(plan, threads);
  int64_t batch = smaller(kGrain / (plan.n * plan.columns), plan.panels / (4 * threads));
  parallel_for(
      plan.panels, across ? threads : 1, [&](int64_t i) { body(Panel(plan, i), across ? 1 : threads); },
      batch > 1 ? batch : 1);
}

// Runs body(first, live) over all panels, `live` of them from `first` on together: kGroup, or fewer where that leaves
// threads without any.
template <class Body>
static void for_each_batch(const Plan& plan, int threads, const Body& body) {
  threads = threads_for(plan, threads);
  const int64_t size = smaller(kGroup, ceil_div(plan.panels, threads));
  parallel_for(ceil_div(plan.panels, size), threads,
               [&](int64_t i) { body(i * size, int(smaller(size, plan.panels - i * size))); });
}

// Runs body(first, last, threads) over all panels, the panels first <= i < last together: those side by side in a wide
// matrix, so that whoever has them can walk it row by row; else one at a time.
template <class Body>
static void for_each_team(const Plan& plan, int threads, const Body& body) {
  threads = threads_for(plan, threads);
  bool across = panels_go_round(plan, threads);
  bool wide = across && plan.chunks > 1 && plan.columns == plan.width;
  int64_t size = wide ? smaller(kTeam, ceil_div(plan.panels, threads)) : 1;
  parallel_for(ceil_div(plan.panels, size), across ? threads : 1,
               [&](int64_t i) { body(i * size, smaller((i + 1) * size, plan.panels), across ? 1 : threads); });
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
