// Which kernel design serves which problem, and every number that decides it.
//
// clang-format off
//
//  regime   who serves a tile                           where its entries lie     how long it may be
//  -------  ------------------------------------------  ------------------------  -------------------------------------
//  short    a group of 1 to 32 lanes per vector         registers                 n up to 1024 (512 for float64)
//  block    a block                                     shared memory             a tile up to half a multiprocessor's
//  cluster  a cluster of 2 to 16 blocks                 shared memory of all of   16 times as much, where the device
//                                                       them                      runs clusters of so many blocks
//  grid     several blocks, which exchange their sums   global memory, read       any
//           in global memory                            again for every sweep, or
//                                                       once beside a sample
//
// clang-format on
//
// A tile is one vector, or several that lie side by side in memory, its columns. Where there are tiles enough to fill
// the device with a block each, one that is too long for shared memory is left to a block all the same, which reads its
// entries again for every sweep as a grid does.
//
// The kernels that order and pool divide vectors in their own way (rows.cuh): there a vector is served by a warp or
// part of one in the regime short, by a block in the regime block, and by several launches in the regime grid.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "../hypersimplex.h"

namespace hypersimplex {
namespace cuda {

enum class Regime : int { kShort, kBlock, kCluster, kGrid };

namespace tuning {
constexpr int kShortBytes = 128;         // of a lane's registers, for entries
constexpr int kShortThreads = 128;       // per block
constexpr int kLongestShortColumn = 4;   // lanes per column: beyond, rows of a tile get shorter than a memory sector
constexpr int kStagedGroup = 4;          // lanes per vector up to which rows are moved through shared memory
constexpr int kLeastColumns = 24;        // vectors side by side below which each is a tile of its own
constexpr int kMostColumns = 32;         // in a tile
constexpr int kSectorBytes = 32;         // of global memory
constexpr int kSlots = 256;              // places for partial sums, one per warp and column
constexpr int kMaxThreads = 1024;        // per block; also the kernels' launch bound
constexpr int kWideThreads = 512;        // of a multiprocessor where each thread serves several vectors
constexpr int kStreamThreads = 512;      // per block that reads its entries again
constexpr int kStreamBlocks = 2;         // of these per multiprocessor; the launch bound makes room for them
constexpr int kBusyEntries = 32;         // per thread where there are blocks enough to fill the device,
constexpr int kIdleEntries = 8;          // and where there are not
constexpr int kLeastShare = 1024;        // entries that are worth a block of a cluster,
constexpr int kLeastStreamShare = 8192;  // and of a grid
constexpr int kPassThreads = 256;        // per block of a single pass,
constexpr int kPassEntries = 4;          // entries at least of each of them,
constexpr int kPassBlocks = 8;           // and blocks at most per multiprocessor, if each tile gets one
constexpr int kLabelShare = 1024;        // class indices at least that a block counts,
constexpr int kMostBins = 8192;          // and classes at most that it has counters of in shared memory
constexpr int kLineBytes = 128;          // of memory, the width of a tile in such a pass
constexpr int kPortableCluster = 8, kLargestCluster = 16;
constexpr int kClusterSizes = 4;        // powers of two, from 2 blocks to the largest
constexpr int kSortThreads = 512;       // per block at most: entries take most of the registers
constexpr int kPoolThreads = 512;       // per vector that is pooled in one block,
constexpr int kPoolTileThreads = 128;   // and per tile of a longer one
constexpr int kFlush = 64;              // entries summed in float32 before they are added to a double
constexpr int kLeastListed = 32 << 20;  // bytes of a vector, about what the cache holds, of which a sample saves sweeps
constexpr int kListBytes = 208;         // of shared memory at most for the list of a thread
constexpr int kSampled = 255;           // of so many entries one is in the sample; odd, as data have even periods
}  // namespace tuning

// How many numbers a team reduces at once, at most.
constexpr int kMaxSums = 6;

// Of shared memory, for the short rows of a warp: a gap after every 32 entries avoids bank conflicts.
constexpr int kStagedBytes = tuning::kShortBytes * 33;

struct Limits {
  int multiprocessors, shared_per_block, shared_per_multiprocessor;
  int clusters[tuning::kClusterSizes];  // of 2, 4, 8 and 16 blocks that run at once
};

struct Problem {
  int64_t n, n2, lines, lanes;  // entries of a vector, of them in a run; lines * lanes vectors
  bool adjacent;                // vectors of a line lie side by side: lanes are neighbours in memory, entries are not
  bool contiguous;              // vectors follow one another without a gap
  bool packs;  // 16-byte accesses: vectors are runs of neighbours, begin and end at multiples of 16 bytes
  int wide;    // neighbouring vectors of which each access can hold an entry (wide.cuh), or 0
  int entry_bytes, compute_bytes;
  int state_bytes;  // of shared memory for what a kernel keeps of a vector
  bool marks;       // a kernel keeps a byte per access beside the entries
};

struct Plan {
  Regime regime;
  bool packs;                // 16-byte accesses
  bool resident;             // entries stay in registers or shared memory
  bool staged;               // short: rows move through shared memory
  bool adjacent;             // short: neighbouring lanes hold different vectors
  int group;                 // short: lanes per vector
  int columns, column_bits;  // vectors of a tile, a power of two
  int threads, blocks;       // per block, per tile
  int shared_bytes;
  int tiles_per_line, tiles, teams;
  int64_t n, lanes, share;  // share: entries of each vector per block
  uint64_t inverse_n2;      // inverse_of(Shape::n2)
  int list_bytes;           // of shared memory, for each thread's list of entries, or 0: long_vectors.cu
};

// HYPERSIMPLEX_REGIME=name[:key=value,...] in the environment, for tests and measurements: short, block, cluster or
// grid; keys blocks, columns, threads, stream=1 for entries that are read again, lists=1 for a sample
// (long_vectors.cu).
struct Forced {
  bool set = false;
  Regime regime = Regime::kBlock;
  int blocks = 0, columns = 0, threads = 0, stream = 0, lists = 0;
};

inline Forced forced_regime() {
  Forced forced;
  const char* text = std::getenv("HYPERSIMPLEX_REGIME");
  if (!text || !*text) return forced;
  auto invalid = [&] {
    return std::invalid_argument(
        "HYPERSIMPLEX_REGIME must be short, block, cluster or grid, then :key=value,... with "
        "keys blocks, columns, threads (a multiple of 64), stream, lists; got '" +
        std::string(text) + "'");
  };
  const char* names[] = {"short", "block", "cluster", "grid"};
  std::string rest(text), name = rest.substr(0, rest.find(':'));
  for (int i = 0; i < 4; ++i)
    if (name == names[i]) forced.regime = Regime(i), forced.set = true;
  if (!forced.set) throw invalid();
  rest = rest.size() > name.size() ? rest.substr(name.size() + 1) : "";
  while (!rest.empty()) {
    std::string item = rest.substr(0, rest.find(','));
    rest = rest.size() > item.size() ? rest.substr(item.size() + 1) : "";
    int* value = nullptr;
    for (auto& known : {std::make_pair("blocks=", &forced.blocks), std::make_pair("columns=", &forced.columns),
                        std::make_pair("threads=", &forced.threads), std::make_pair("stream=", &forced.stream),
                        std::make_pair("lists=", &forced.lists)})
      if (item.compare(0, std::strlen(known.first), known.first) == 0) value = known.second;
    if (!value) throw invalid();
    *value = std::atoi(item.c_str() + item.find('=') + 1);
  }
  if (forced.threads % 64 != 0) throw invalid();
  return forced;
}

// For divisions on the device: warp.cuh.
inline uint64_t inverse_of(int64_t b) { return ~uint64_t(0) / uint64_t(b) + 1; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int power_of_two(int64_t at_least, int least, int most) {
  int v = least;
  while (v < most && v < at_least) v *= 2;
  return v;
}

class Planner {
 public:
  Planner(const Problem& problem, const Limits& limits) : p_(problem), d_(limits) {}

  Plan short_plan() const {
    Plan plan = common(Regime::kShort);
    plan.group = power_of_two(ceil_div(p_.n, tuning::kShortBytes / p_.compute_bytes), 1, 32);
    plan.columns = 32 / plan.group;
    plan.adjacent = p_.adjacent;
    plan.packs = p_.packs && !p_.adjacent;
    plan.staged = p_.contiguous && plan.group <= tuning::kStagedGroup;
    plan.threads = tuning::kShortThreads;
    plan.resident = true;
    plan.blocks = 1;
    int warps = plan.threads / 32;
    plan.shared_bytes = plan.staged ? warps * kStagedBytes : 0;
    tile(plan);
    plan.share = p_.n;
    plan.teams = int(ceil_div(plan.tiles, warps));  // blocks
    return plan;
  }

  Plan choose(bool short_kernel) const {
    Forced forced = forced_regime();
    if (forced.set && forced.regime != Regime::kShort) return forced_plan(forced);
    int64_t longest = 32 * tuning::kShortBytes / p_.compute_bytes;
    if (p_.adjacent) longest = longest / 32 * tuning::kLongestShortColumn;
    bool forced_short = forced.set && p_.n <= 32 * tuning::kShortBytes / p_.compute_bytes;
    if (short_kernel && (forced_short || p_.n <= longest)) return short_plan();
    return team_plan();
  }

  // The same plan with lists where they are of use; state_bytes: of the kernel that keeps them.
  Plan with_lists(Plan plan, int state_bytes) const {
    const Forced forced = forced_regime();
    const bool grid = plan.regime == Regime::kGrid && plan.packs && !plan.resident;
    if (!grid || !(forced.set ? forced.lists : p_.n * p_.entry_bytes >= tuning::kLeastListed)) return plan;
    int most = d_.shared_per_multiprocessor / tuning::kStreamBlocks - 1024;
    if (most > d_.shared_per_block) most = d_.shared_per_block;
    plan.shared_bytes += 2 * (state_bytes - p_.state_bytes);
    const int room = (most - plan.shared_bytes) / plan.threads / 16 * 16;
    plan.list_bytes = room < tuning::kListBytes ? room > 0 ? room : 0 : tuning::kListBytes;
    plan.shared_bytes += plan.threads * plan.list_bytes;
    return plan;
  }
  // Of a plan with lists, the plan for its sample.
  static Plan sample_of(Plan plan) {
    plan.n /= tuning::kSampled;
    plan.share = ceil_div(plan.n, plan.blocks);
    plan.packs = false;
    return plan;
  }

  // For sweeps of which each is a launch: entries are not kept.
  Plan streaming() const {
    Forced forced = forced_regime();
    if (!forced.set || forced.regime == Regime::kShort) return stream_plan();
    forced.stream = 1;
    return forced_plan(forced);
  }

  // A single pass, in which nothing is exchanged: each of the `blocks` blocks of a tile takes its share of it.
  Plan elementwise() const {
    Plan plan = common(Regime::kBlock);
    plan.columns = p_.adjacent ? power_of_two(p_.lanes, 1, tuning::kLineBytes / p_.entry_bytes) : 1;
    plan.threads = tuning::kPassThreads;
    tile(plan);
    plan.teams = plan.tiles;
    int64_t useful = ceil_div(p_.n * plan.columns, int64_t(plan.threads) * tuning::kPassEntries);
    int64_t blocks = int64_t(tuning::kPassBlocks) * d_.multiprocessors / plan.tiles;
    share_out(plan, blocks < 1 ? 1 : blocks < useful ? blocks : useful);
    plan.shared_bytes = plan.columns * p_.state_bytes;
    return plan;
  }

  // A plan for a team of `blocks` blocks over tiles of `columns` vectors.
  Plan build(Regime regime, int columns, int blocks, bool resident, int threads = 0) const {
    Plan plan = common(regime);
    plan.columns = columns;
    plan.resident = resident;
    plan.packs = p_.packs && columns == 1;
    tile(plan);
    share_out(plan, blocks);
    int64_t entries = plan.share * columns;
    bool busy = is_busy(plan);
    int most =
        tuning::kSlots * 32 / columns < tuning::kMaxThreads ? tuning::kSlots * 32 / columns : tuning::kMaxThreads;
    plan.shared_bytes = fixed_bytes(columns) + (resident ? int(tile_bytes(plan.share, columns)) : 0);
    const bool two = !resident || pays_twice(plan);
    if (two && most > tuning::kStreamThreads) most = tuning::kStreamThreads;
    int per_thread = busy ? tuning::kBusyEntries : tuning::kIdleEntries;
    plan.threads = threads ? (threads < most ? threads : most) : power_of_two(ceil_div(entries, per_thread), 64, most);
    int64_t most_blocks = regime == Regime::kGrid ? tuning::kStreamBlocks * d_.multiprocessors : kMostBlocks;
    plan.teams = plan.tiles;
    if (int64_t(plan.tiles) * blocks > most_blocks) plan.teams = most_blocks > blocks ? int(most_blocks / blocks) : 1;
    return plan;
  }

  // The same for a kernel of whose threads a multiprocessor holds no more than kWideThreads.
  Plan of_wide_threads(Plan plan) const {
    const int most = pays_twice(plan) ? tuning::kWideThreads / 2 : tuning::kWideThreads;
    if (plan.threads > most) plan.threads = most;
    return plan;
  }

 private:
  static constexpr int64_t kMostBlocks = 1 << 30;

  bool is_busy(const Plan& plan) const { return int64_t(plan.tiles) * plan.blocks >= 2 * d_.multiprocessors; }
  // Two blocks of a multiprocessor, rather than one as large: one works while the other waits for its warps.
  bool pays_twice(const Plan& plan) const {
    return is_busy(plan) && 2 * (plan.shared_bytes + 1024) <= d_.shared_per_multiprocessor;
  }

  Plan common(Regime regime) const {
    Plan plan{};
    plan.regime = regime;
    plan.n = p_.n;
    plan.lanes = p_.lanes;
    plan.inverse_n2 = inverse_of(p_.n2);
    plan.group = 1;
    return plan;
  }
  void tile(Plan& plan) const {
    if (tiles_of(plan.columns) > kMostBlocks)
      throw std::invalid_argument("at most 2^30 tiles of vectors, got " + std::to_string(tiles_of(plan.columns)));
    while (1 << plan.column_bits < plan.columns) ++plan.column_bits;
    plan.tiles_per_line = int(ceil_div(p_.lanes, plan.columns));
    plan.tiles = int(tiles_of(plan.columns));
  }
  void share_out(Plan& plan, int64_t blocks) const {
    int pack = 16 / p_.entry_bytes;
    plan.blocks = int(blocks);
    plan.share = ceil_div(ceil_div(p_.n, blocks), pack) * pack;
  }
  // team.cuh: partial sums of warps, twice those of blocks, a signal, and the states of the vectors.
  int fixed_bytes(int columns) const {
    int warps = tuning::kSlots / columns < 32 ? tuning::kSlots / columns : 32;
    return (warps + 2) * columns * kMaxSums * 8 + 16 + (columns > 2 ? columns : 2) * p_.state_bytes;
  }
  int64_t tile_bytes(int64_t share, int columns) const {
    int64_t entries = share * columns;
    bool packs = p_.packs && columns == 1;
    return entries * p_.entry_bytes + (p_.marks ? entries / (packs ? 16 / p_.entry_bytes : 1) : 0) + 16;
  }
  bool fits(int columns, int blocks, int shared) const {
    return tile_bytes(ceil_div(p_.n, blocks) + 16, columns) + fixed_bytes(columns) <= shared;
  }
  int64_t tiles_of(int columns) const { return p_.lines * ceil_div(p_.lanes, columns); }
  // How many clusters of `blocks` blocks run at once.
  int64_t clusters(int blocks) const {
    int size = 0;
    while (2 << size < blocks) ++size;
    return size < tuning::kClusterSizes ? d_.clusters[size] : 0;
  }

  Plan team_plan() const {
    // Wide tiles read long runs of memory, narrow ones are many: the widest that still fills the device, if any does.
    bool columns = p_.adjacent && p_.lanes >= tuning::kLeastColumns;
    int widest = columns ? tuning::kMostColumns : 1, narrowest = columns ? tuning::kSectorBytes / p_.entry_bytes : 1;
    int half = d_.shared_per_multiprocessor / 2 - 1024;
    if (half > d_.shared_per_block) half = d_.shared_per_block;
    for (int width = widest; width >= narrowest; width /= 2) {
      int64_t tiles = tiles_of(width);
      int blocks = 1, most = 1;
      while (most < tuning::kPortableCluster && clusters(2 * most) > 0) most *= 2;
      while (blocks < most && !fits(width, blocks, half)) blocks *= 2;
      if (!fits(width, blocks, half)) continue;
      // More blocks per tile only as long as no tile has to wait for another.
      while (blocks < most && tiles * blocks * 2 <= d_.multiprocessors && tiles <= clusters(2 * blocks) &&
             p_.n >= 2 * blocks * tuning::kLeastShare)
        blocks *= 2;
      if (tiles * blocks >= d_.multiprocessors || width == narrowest)
        return build(blocks > 1 ? Regime::kCluster : Regime::kBlock, width, blocks, true);
    }
    if (clusters(tuning::kLargestCluster) > 0 && fits(narrowest, tuning::kLargestCluster, half))
      return build(Regime::kCluster, narrowest, tuning::kLargestCluster, true);
    for (int blocks = 1; blocks <= tuning::kLargestCluster; blocks *= 2)
      if ((blocks == 1 || clusters(blocks) > 0) && fits(narrowest, blocks, d_.shared_per_block))
        return build(blocks > 1 ? Regime::kCluster : Regime::kBlock, narrowest, blocks, true);
    return stream_plan();
  }

  Plan stream_plan() const {
    int width = p_.adjacent ? power_of_two(p_.lanes, 1, tuning::kMostColumns) : 1;
    int64_t tiles = tiles_of(width), resident = int64_t(tuning::kStreamBlocks) * d_.multiprocessors;
    int64_t blocks = tiles < resident ? resident / tiles : 1, useful = p_.n * width / tuning::kLeastStreamShare;
    if (blocks > useful) blocks = useful > 0 ? useful : 1;
    return build(blocks > 1 ? Regime::kGrid : Regime::kBlock, width, int(blocks), false);
  }

  Plan forced_plan(const Forced& forced) const {
    int widest = p_.adjacent ? power_of_two(p_.lanes, 1, tuning::kMostColumns) : 1;
    int columns = forced.columns && p_.adjacent ? forced.columns : widest;
    int blocks = forced.regime == Regime::kBlock ? 1 : forced.blocks ? forced.blocks : 2;
    bool resident = forced.regime != Regime::kGrid && !forced.stream && fits(columns, blocks, d_.shared_per_block);
    return build(forced.regime, columns, blocks, resident, forced.threads);
  }

  const Problem& p_;
  const Limits& d_;
};

// For a kernel of one block that reduces sums of its own.
inline Plan one_block_plan() {
  Plan plan{};
  plan.regime = Regime::kBlock;
  plan.columns = plan.blocks = plan.teams = plan.tiles = plan.tiles_per_line = 1;
  plan.threads = tuning::kPassThreads;
  plan.shared_bytes = (plan.threads / 32 + 2) * kMaxSums * 8 + 16;
  return plan;
}

}  // namespace cuda
}  // namespace hypersimplex
