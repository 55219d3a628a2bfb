// How the projection of a call is computed on the CPU: how its vectors are laid on lanes, and which solver finds their
// thresholds. The whole choice is here, with every number it takes; a solver may still decline a vector at run time,
// and what it declines goes to the next row that serves it, in the end to `sorted`, which serves all.
//
// clang-format off
//
//  layout                       vectors                                            width         columns
//  ---------------------------  -------------------------------------------------  ------------  ---------------------
//  interleaved                  [n, C], C < 16 adjacent columns, n > 128           lcm(C, 16)    C
//  side by side                 [n, C], C >= 16 adjacent columns                   up to 128     width
//  transposed                   several with n <= 256, else                        up to 64      width
//  long                         any other: 16 or, from n = 2048 on, 64 entries     16, 64        1
//
//  solver             serves (can_use_*)                            is chosen where it pays              file in solvers/
//  -----------------  --------------------------------------------  -----------------------------------  -------------------
//  short_vectors      side by side or transposed, n <= 8192         always                               short_vectors.h
//  row_candidates     rows of float32 or float64, n >= 64, k <= 21  256 <= n <= 8192 and 64 k <= n       row_candidates.h
//  single_row         rows of float32 or float64, n >= 64           256 <= n <= 8192                     single_row.h
//  column_candidates  losses, side by side, n >= 256                n >= 1024 and k <= n / 128           column_candidates.h
//  long_vectors       long, n >= 2048                               n >= 131072, or n >= 16384 and k     long_vectors.h
//                                                                   of at most about 14 n^(1/3)
//  long_columns       side by side, n >= 2048                       n > 8192                             long_columns.h
//  general            all: a sweep per step of the search                                                general.h
//  sorted             all: what the search does not settle in 48 steps, and temperatures next to the     sorted.h
//                     end of the type's range
//
// clang-format on
//
// HYPERSIMPLEX_CPU_SOLVER forces a solver (solver.h): it is tried wherever it serves, whether it pays or not, and no
// other one before `general`. A call that it cannot serve at all raises an error.
#pragma once

#include "cpu/projection/solvers/solver.h"
#include "cpu/projection/sweeps.h"
#include "hypersimplex.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

// ---- the numbers of the layout ----

constexpr int kBlock = 4096;                 // entries whose sums are kept in T
constexpr int kBlocksPerChunk = 4;           // blocks between two places where threads may part, at least
constexpr int64_t kMostChunks = 64;          // of a panel: the sums of all of them are kept until they are added
constexpr int64_t kShort = kBlock / kGroup;  // vectors up to this length go side by side
constexpr int kRows = 4 * kGroup;            // how many of them, as far as they make one block
constexpr int kSideBySide = 8 * kGroup;      // columns of a matrix in a panel, at most
constexpr int64_t kBlockRows = 32;           // of a matrix, whatever the width of a panel: no result depends on that
constexpr int64_t kChunkRows = 256;
constexpr int64_t kFarApart = 4 * kGroup;  // columns of a panel at least where its rows do not stay in a cache: whole
                                           // lines are read of each
constexpr int kPanelsPerThread = 4;        // of a matrix, where it has as many: so that threads end together
constexpr int64_t kFewRows = 4;            // of a wide matrix that are walked side by side
constexpr int kTeam = 16;                  // panels side by side that one thread takes together
constexpr int kWide = 4 * kGroup;          // lanes of a long vector
constexpr int64_t kLong = 2048;            // and how long it is; with few steps per lane their ends weigh

// ---- the numbers of the solvers ----

constexpr int kMaxEvaluations = 48;             // of the general search, before a vector is sorted
constexpr int64_t kMaxKept = int64_t(1) << 21;  // entries that are copied once where no sweep can read them in place
constexpr int64_t kMostRows = 8192;  // of columns that are solved abreast: 16 of them stay in a second-level cache
constexpr int64_t kNear = int64_t(1) << 17;  // entries of a panel that stay there, 512 KiB in float32
constexpr int kShortPatience = 14;           // evaluations of short vectors before they are left to the general search
constexpr int kShortWidePatience = 8;        // and before a wide bracket is bisected
constexpr int kRowPatience = 12;             // steps of a single row, likewise
constexpr int64_t kLeastRow = 256, kMostRow = 8192;       // rows that go in batches: longer ones do not stay near
constexpr int kRowMaxima = 64, kMostRowCandidates = 128;  // of a row: lanes whose maxima are taken; entries above them
constexpr double kSmallRowMass = kRowMaxima / 3;
constexpr double kSmallRowShare = 1.0 / 64;                               // k / n
constexpr int64_t kColumnSample = 256, kLeastColumn = 4 * kColumnSample;  // rows
constexpr double kRoomForColumn = 32;                                     // entries listed, as a multiple of k
constexpr double kSmallColumnShare = 1.0 / 128;                           // k / n
constexpr int64_t kLongForFew = 1 << 14, kLongForAny = 1 << 17;  // where a sample pays: for a small mass, for any
constexpr int64_t kRoomForUndecided = 1 << 14;                   // entries of a column that are listed at most
constexpr double kDeviations = 3;                                // of a sample's share of the mass, rarely exceeded
constexpr int64_t kMostUndecided = 8;  // a bracket is of use if it leaves at most one entry in 8 undecided

// ---- the layout ----

static inline double at(const PerVector& numbers, int64_t v) {
  return numbers.values ? numbers.values[v] : numbers.value;
}
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Plan {
  Shape shape;
  int64_t n;         // entries per vector
  bool lanes_outer;  // vectors side by side differ in o rather than in i
  int width, columns;
  int64_t lane_count, panels_per_line, panels;
  int64_t steps, block_steps, chunk_steps, chunks;
  int64_t full_steps;  // without the last one where its lanes reach behind the end of a vector or of the matrix

  int entries_per_step() const { return width / columns; }
  bool in_matrix;  // vectors are adjacent columns, a lane each
  bool listed;     // what lies there are lists of some entries of each

  int64_t block_entries() const { return block_steps * width; }
  bool side_by_side() const { return columns == width; }  // a lane is one vector
  void set_length(int64_t entries) {
    n = entries;
    steps = ceil_div(n, entries_per_step());
    full_steps = n / entries_per_step();
    if (in_matrix && width > kSideBySide) {
      block_steps = larger(kBlock / width, kFewRows);
      chunk_steps = larger(kBlocksPerChunk * kBlock / (block_steps * width), 1) * block_steps;
    } else if (in_matrix && (n > kShort || listed)) {
      block_steps = kBlockRows;
      chunk_steps = kChunkRows;
    } else {
      block_steps = kBlock / width;
      chunk_steps = side_by_side() ? block_steps : block_steps * kBlocksPerChunk;
    }
    if (!listed) chunk_steps = larger(chunk_steps, ceil_div(ceil_div(steps, kMostChunks), block_steps) * block_steps);
    chunks = ceil_div(steps, chunk_steps);
  }
  Plan with_length(int64_t entries) const {
    Plan plan = *this;
    plan.listed = true;
    plan.set_length(entries);
    return plan;
  }
};

// most_columns: how many columns of a matrix go side by side.
static inline Plan make_plan_of_width(const Shape& shape, const Strides& strides, int64_t most_columns) {
  Plan plan;
  plan.shape = shape;
  plan.n = shape.n1 * shape.n2;
  plan.in_matrix = plan.listed = false;
  bool overhang = false;
  plan.lanes_outer = shape.inner == 1;
  plan.lane_count = plan.lanes_outer ? shape.outer : shape.inner;
  int64_t lane_stride = plan.lanes_outer ? strides.outer : strides.inner;
  bool adjacent = lane_stride == 1 && plan.lane_count > 1;
  const int64_t abreast = kBlock / (plan.n > 0 ? plan.n : 1) / kGroup * kGroup;  // vectors that make one block
  if (adjacent && plan.lane_count < kGroup && strides.n2 == plan.lane_count && plan.n > kShort / 2) {
    plan.columns = int(plan.lane_count);
    int twos = plan.columns & -plan.columns;
    plan.width = plan.columns * kGroup / (twos < kGroup ? twos : kGroup);
  } else if (adjacent && plan.lane_count >= kGroup && strides.n2 != 1) {
    plan.in_matrix = true;
    const bool walked = plan.n > kShort || most_columns > kSideBySide;
    const int64_t most = walked ? most_columns : smaller(smaller(2 * kGroup, abreast), most_columns);
    plan.columns = plan.width = int(smaller(most, ceil_div(plan.lane_count, kGroup) * kGroup));
    // A last group of lanes with fewer columns reads on into the next row, as far as there is one.
    overhang = walked && plan.lane_count % kGroup != 0;
  } else if (plan.n <= kShort && plan.lane_count > 1) {
    const int64_t padded = ceil_div(plan.lane_count, kGroup) * kGroup;
    plan.columns = plan.width = int(smaller(smaller(abreast, padded), kRows));
  } else {
    plan.columns = 1;
    plan.width = plan.n < kLong ? kGroup : kWide;
  }
  plan.panels_per_line = ceil_div(plan.lane_count, plan.columns);
  plan.panels = plan.panels_per_line * (plan.lanes_outer ? 1 : shape.outer);
  plan.set_length(plan.n);
  if (overhang) plan.full_steps = plan.n > 0 ? plan.n - 1 : 0;
  return plan;
}

// For what is solved panel by panel.
static inline Plan make_plan(const Shape& shape, const Strides& strides, int threads) {
  const int64_t lines = shape.inner == 1 ? 1 : shape.outer, columns = shape.inner == 1 ? shape.outer : shape.inner;
  const int64_t share = ceil_div(ceil_div(columns * lines, kPanelsPerThread * threads), kGroup) * kGroup;
  const int64_t least = shape.n1 * shape.n2 > kMostRows ? kFarApart : kGroup;
  return make_plan_of_width(shape, strides, threads > 1 ? smaller(larger(share, least), kSideBySide) : kSideBySide);
}

// ---- the solvers ----

static inline bool can_use_short_vectors(const Plan& plan) { return plan.side_by_side() && plan.n <= kMostRows; }
static inline bool can_use_long_vectors(const Plan& plan) { return plan.columns == 1 && plan.width == kWide; }
static inline bool can_use_column_candidates(const Plan& plan) {
  return plan.side_by_side() && plan.n >= kColumnSample && plan.n <= INT32_MAX;
}

// Whether the vectors are rows whose entries lie side by side, of which kGroup stay near.
static inline bool in_rows(const Plan& plan, const Strides& strides) {
  return plan.shape.n1 == 1 && strides.n2 == 1 && plan.n <= kMostRow;
}
// Whether they are rows that go in batches.
static inline bool in_batches(const Plan& plan, const Strides& strides) {
  return in_rows(plan, strides) && plan.columns == 1 && plan.n >= kLeastRow;
}
// Of row_candidates and of single_row.
static inline bool can_use_rows(const Plan& plan, const Strides& strides) {
  return plan.shape.n1 == 1 && strides.n2 == 1 && plan.columns == 1 && plan.n >= kRowMaxima;
}
static inline bool wants_rows(const Plan& plan, const Strides& strides) {
  const bool pays = in_batches(plan, strides);
  return can_use_rows(plan, strides) &&
         (cpu::is_wanted(cpu::Solver::kRowCandidates, pays) || cpu::is_wanted(cpu::Solver::kSingleRow, pays));
}
static inline bool wants_row_candidates(double mass, int64_t n) {
  return mass > 0 && mass <= kSmallRowMass &&
         cpu::is_wanted(cpu::Solver::kRowCandidates, mass <= kSmallRowShare * double(n));
}

static inline bool wants_short_vectors(const Plan& plan) {
  return can_use_short_vectors(plan) && cpu::is_wanted(cpu::Solver::kShortVectors, true);
}

// `few`: the mass is so small that the entries that are not zero are listed.
static inline bool wants_long_vectors(const Plan& plan, bool few) {
  return can_use_long_vectors(plan) &&
         cpu::is_wanted(cpu::Solver::kLongVectors, plan.n >= (few ? kLongForFew : kLongForAny));
}

static inline bool can_use_long_columns(const Plan& plan) { return plan.in_matrix && plan.n >= kLong; }
static inline bool wants_long_columns(const Plan& plan) {
  return can_use_long_columns(plan) && cpu::is_wanted(cpu::Solver::kLongColumns, plan.n > kMostRows);
}

static inline bool wants_column_candidates(const Plan& plan) {
  return can_use_column_candidates(plan) && cpu::is_wanted(cpu::Solver::kColumnCandidates, plan.n >= kLeastColumn);
}

// Raises for a forced solver that serves none of these vectors. `rows`: can_use_rows, of entries computed with as they
// are stored; `loss`: they are the columns of a loss.
static inline void refuse_forced(const Plan& plan, bool rows, bool loss) {
  using cpu::Solver;
  if (!can_use_short_vectors(plan))
    cpu::refuse_if_forced(Solver::kShortVectors,
                          "several vectors of at most 256 entries, or at least 16 adjacent columns of at most 8192");
  if (!can_use_long_vectors(plan))
    cpu::refuse_if_forced(Solver::kLongVectors, "vectors of at least 2048 entries that do not lie side by side");
  if (!can_use_long_columns(plan))
    cpu::refuse_if_forced(Solver::kLongColumns, "at least 16 adjacent columns of at least 2048 entries");
  if (!rows || loss) {
    const char* served =
        "projections of rows of adjacent float32 or float64: more than 256 of them, or at least 64 of a single row";
    cpu::refuse_if_forced(Solver::kRowCandidates, served);
    cpu::refuse_if_forced(Solver::kSingleRow, served);
  }
  if (!(loss && can_use_column_candidates(plan)))
    cpu::refuse_if_forced(Solver::kColumnCandidates, "losses of at least 16 classes and 256 samples");
}

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
