// Stable sort of vectors. An entry becomes a word: above, a key whose unsigned order is the one asked for; below, its
// place. Short vectors are ranked by counting, without a branch; those that fit the near caches are spread over even
// levels between their extremes; the others go through a least significant digit radix sort. Only the upper 32 bits of
// a double fit a word: runs that agree in them are sorted again by the lower ones. A stable sort has one result, so
// threads may cut the work as they like.
#include <cstring>

#include "cpu/launchers.h"
#include "cpu/order/strided_rows.h"
#include "cpu/simd/simd.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {
namespace {

using Word = uint64_t;

constexpr int64_t kRanked = 64;                // up to here the n^2 / 2 comparisons cost less than counting digits
constexpr int64_t kNarrowLevels = 2048;        // up to here 2^16 levels, from there 2^18
constexpr int64_t kLevelled = 16384;           // up to here levels are tried first: two passes instead of three or four
constexpr int64_t kWideDigits = 8192;          // from here three passes with larger tables cost less than four
constexpr int64_t kPlaces = int64_t(1) << 32;  // that fit into half a word
constexpr int kMaxParts = 64;                  // of one vector over threads

template <class In>
struct Format;
template <>
struct Format<float> {
  using Bits = uint32_t;
  static constexpr Bits kInfinity = 0x7f800000u;
};
template <>
struct Format<double> {
  using Bits = uint64_t;
  static constexpr Bits kInfinity = 0x7ff0000000000000u;
};
template <>
struct Format<Float16> {
  using Bits = uint16_t;
  static constexpr Bits kInfinity = 0x7c00u;
};
template <>
struct Format<BFloat16> {
  using Bits = uint16_t;
  static constexpr Bits kInfinity = 0x7f80u;
};

// Keys in ascending order: nan is the largest, and both zeros are one.
template <class In>
struct Keys {
  using Bits = typename Format<In>::Bits;
  static constexpr Bits kSign = Bits(Bits(1) << (8 * sizeof(Bits) - 1)), kNan = Bits(~Bits(0)), kZero = kSign;
  Bits flip;  // all ones for the descending order

  Bits operator()(In entry) const {
    Bits bits;
    memcpy(&bits, &entry, sizeof bits);
    const Bits magnitude = bits & Bits(~kSign);
    const Bits negative = Bits(~magnitude), positive = Bits(magnitude | kSign);
    Bits key = bits > kSign ? negative & Bits(~kSign) : positive;
    return (magnitude > Format<In>::kInfinity ? kNan : key) ^ flip;
  }
  // Whether the key tells all of the entry, which is then put into `entry`.
  bool invert(Bits key, In& entry) const {
    key ^= flip;
    const Bits bits = key & kSign ? Bits(key ^ kSign) : Bits(~key);
    memcpy(&entry, &bits, sizeof bits);
    return key != kZero && key != kNan;
  }
};

template <class Key>
Word word(Key key, int64_t place) {
  return Word(sizeof key == 8 ? uint64_t(key) >> 32 : key) << 32 | Word(place);
}
uint32_t key_of(Word word) { return uint32_t(word >> 32); }
uint32_t place_of(Word word) { return uint32_t(word); }

template <class Body>
void for_each_part(int64_t n, int parts, const Body& body) {
  parallel_for(parts, parts, [&](int64_t part) { body(part, n * part / parts, n * (part + 1) / parts); });
}

// rank = how many earlier keys are no larger and how many later ones are smaller. The places of `seen` that no key has
// reached yet hold the least key, which outranks none.
void sort_by_rank(const Word* words, Word* sorted, int n) {
  int32_t seen[kRanked], rank[kRanked];
  for (int i = 0; i < (n + 7) / 8 * 8; ++i) seen[i] = INT32_MIN, rank[i] = 0;
  for (int j = 0; j < n; ++j) {
    const int32_t key = int32_t(key_of(words[j]) ^ 0x80000000u);
    int32_t above = 0;
    for (int i = 0; i < (j + 7) / 8 * 8; ++i) {
      const int32_t larger = seen[i] > key;
      rank[i] += larger;
      above += larger;
    }
    seen[j] = key;
    rank[j] = j - above;
  }
  for (int j = 0; j < n; ++j) sorted[rank[j]] = words[j];
}

// Sorts by the lowest kDigit * kPasses bits of the key. Returns the array that holds the result, `words` or `spare`.
// counts [parts, kPasses, 2^kDigit].
template <int kDigit, int kPasses>
Word* sort_by_digits(Word* words, Word* spare, int64_t n, int parts, uint32_t* counts) {
  constexpr uint32_t kRadix = 1u << kDigit;
  auto digit = [=](Word word, int pass) { return key_of(word) >> pass * kDigit & (kRadix - 1); };
  auto table = [&](int64_t part, int pass) { return counts + (part * kPasses + pass) * kRadix; };
  for_each_part(n, parts, [&](int64_t part, int64_t begin, int64_t end) {
    memset(table(part, 0), 0, sizeof(uint32_t) * kPasses * kRadix);
    for (int64_t j = begin; j < end; ++j)
      for (int pass = 0; pass < kPasses; ++pass) ++table(part, pass)[digit(words[j], pass)];
  });
  // Before each turn the words are in order by the digits of the passes before; a pass in which all are alike is
  // skipped.
  bool moved = false;
  for (int pass = 0; pass < kPasses; ++pass) {
    int64_t like_first = 0;
    for (int part = 0; part < parts; ++part) like_first += table(part, pass)[digit(words[0], pass)];
    if (like_first == n) continue;
    if (moved && parts > 1)  // the parts now hold other words
      for_each_part(n, parts, [&](int64_t part, int64_t begin, int64_t end) {
        memset(table(part, pass), 0, sizeof(uint32_t) * kRadix);
        for (int64_t j = begin; j < end; ++j) ++table(part, pass)[digit(words[j], pass)];
      });
    // `next` counts the words of smaller digits, and those of this digit in the parts before.
    uint32_t next = 0;
    for (uint32_t d = 0; d < kRadix; ++d)
      for (int part = 0; part < parts; ++part) {
        const uint32_t count = table(part, pass)[d];
        table(part, pass)[d] = next;
        next += count;
      }
    for_each_part(n, parts, [&](int64_t part, int64_t begin, int64_t end) {
      uint32_t* place = table(part, pass);
      for (int64_t j = begin; j < end; ++j) spare[place[digit(words[j], pass)]++] = words[j];
    });
    std::swap(words, spare);
    moved = true;
  }
  return words;
}

constexpr int64_t kCounts = 3 << 11;  // per part

// What one vector leaves: values and order, each where it is wanted.
template <class In>
struct Sorted {
  In* values;
  int32_t* order;
  int64_t* wide_order;
};

// The least and the largest entry; false where one is a nan or an infinity.
template <class In>
bool range_of(const In* x, int64_t n, In& least, In& largest) {
  constexpr int64_t kLanes = kVectorLanes<In>;
  static_assert(kLanes <= kRanked, "a vector is no longer than what is sorted by levels");
  Vector<In> low = load_vector(x), high = low, strange = low - low;
  auto take = [&](const Vector<In>& entries) {
    low = entries < low ? entries : low;
    high = entries > high ? entries : high;
    strange += entries - entries;
  };
  for (int64_t j = kLanes; j + kLanes <= n; j += kLanes) take(load_vector(x + j));
  take(load_vector(x + n - kLanes));
  least = low[0];
  largest = high[0];
  In sum = strange[0];
  for (int64_t i = 1; i < kLanes; ++i) {
    least = low[i] < least ? low[i] : least;
    largest = high[i] > largest ? high[i] : largest;
    sum += strange[i];
  }
  return sum == 0;
}

// Sorts by 2^(2 kDigit) levels, evenly from the least to the largest entry: two passes leave few entries out of order,
// and insertion moves these. False, with nothing of use done, where that would move many, where entries are not finite
// and where they are in order, which others find faster. words and spare [n].
template <int kDigit, class In>
bool sort_by_levels(const In* x, int64_t n, bool descending, uint32_t* words, uint32_t* spare, uint32_t* counts,
                    const Sorted<In>& out) {
  constexpr int kPlaceBits = 14;
  constexpr uint32_t kRadix = 1u << kDigit, kTop = kRadix * kRadix - 1;
  static_assert(kLevelled <= 1 << kPlaceBits && kPlaceBits + 2 * kDigit <= 32, "a level and a place fit a word");
  auto wrong = [=](In left, In right) { return descending ? left < right : left > right; };
  In least, largest;
  if (!range_of(x, n, least, largest)) return false;
  const In scale = In(kTop) / (largest - least);
  if (!(scale > 0 && is_finite(scale))) return false;
  int64_t in_order = 1;
  while (in_order < n && !wrong(x[in_order - 1], x[in_order])) ++in_order;
  if (in_order == n) return false;

  const uint32_t flip = descending ? kTop : 0;
  for (int64_t j = 0; j < n; ++j)
    words[j] = (uint32_t(int32_t((x[j] - least) * scale)) ^ flip) << kPlaceBits | uint32_t(j);
  uint32_t *lower = counts, *upper = counts + kRadix;
  auto lower_digit = [](uint32_t word) { return word >> kPlaceBits & (kRadix - 1); };
  auto upper_digit = [](uint32_t word) { return word >> (kPlaceBits + kDigit); };
  memset(counts, 0, sizeof(uint32_t) * 2 * kRadix);
  for (int64_t j = 0; j < n; ++j) ++lower[lower_digit(words[j])], ++upper[upper_digit(words[j])];
  uint32_t next_lower = 0, next_upper = 0;
  for (uint32_t d = 0; d < kRadix; ++d) {
    const uint32_t in_lower = lower[d], in_upper = upper[d];
    lower[d] = next_lower;
    upper[d] = next_upper;
    next_lower += in_lower;
    next_upper += in_upper;
  }
  for (int64_t j = 0; j < n; ++j) spare[lower[lower_digit(words[j])]++] = words[j];
  int32_t* order = reinterpret_cast<int32_t*>(words);  // near, unlike the result
  for (int64_t j = 0; j < n; ++j) order[upper[upper_digit(spare[j])]++] = int32_t(spare[j] & ((1u << kPlaceBits) - 1));

  In* values = out.values ? out.values : reinterpret_cast<In*>(spare);
  // Insertion: before each turn values and order are in order in front of j.
  int64_t moves = 0;
  values[0] = x[order[0]];
  for (int64_t j = 1; j < n; ++j) {
    const int32_t place = order[j];
    const In entry = x[place];
    values[j] = entry;
    if (!wrong(values[j - 1], entry)) continue;
    int64_t i = j;
    for (; i > 0 && wrong(values[i - 1], entry); --i) {
      values[i] = values[i - 1];
      order[i] = order[i - 1];
    }
    values[i] = entry;
    order[i] = place;
    moves += j - i;
    if (moves > 2 * n) return false;
  }
  if (out.order) std::copy(order, order + n, out.order);
  if (out.wide_order) std::copy(order, order + n, out.wide_order);
  return true;
}

// Stable, by the key's lowest `bits` bits; the others are 0. Returns the array that holds the result.
Word* sort_words(Word* words, Word* spare, int64_t n, int bits, int parts, uint32_t* counts) {
  int64_t sorted = 1, reversed = 1;
  while (sorted < n && key_of(words[sorted - 1]) <= key_of(words[sorted])) ++sorted;
  if (sorted >= n) return words;
  while (reversed < n && key_of(words[reversed - 1]) > key_of(words[reversed])) ++reversed;
  if (reversed == n) {
    for (int64_t j = 0; j < n / 2; ++j) std::swap(words[j], words[n - 1 - j]);
    return words;
  }
  if (n <= kRanked) {
    sort_by_rank(words, spare, int(n));
    return spare;
  }
  if (bits == 16) return sort_by_digits<8, 2>(words, spare, n, parts, counts);
  if (n < kWideDigits) return sort_by_digits<8, 4>(words, spare, n, parts, counts);
  return sort_by_digits<11, 3>(words, spare, n, parts, counts);
}

// Sorts each run of words of one key by the lower halves of the doubles. Only their places are right afterwards.
void sort_by_lower_half(const double* x, const Keys<double>& keys, Word* words, Word* spare, int64_t n, int parts,
                        uint32_t* counts) {
  auto sort_run = [&](int64_t begin, int64_t end, int parts, uint32_t* counts) {
    for (int64_t j = begin; j < end; ++j) spare[j] = word(uint32_t(keys(x[place_of(words[j])])), place_of(words[j]));
    const Word* sorted = sort_words(spare + begin, words + begin, end - begin, 32, parts, counts);
    if (sorted == spare + begin) std::copy(spare + begin, spare + end, words + begin);
  };
  if (key_of(words[0]) == key_of(words[n - 1])) return sort_run(0, n, parts, counts);
  // A part has the runs that start in it. It reads no key that another one has overwritten: where a run starts is
  // looked up before any is sorted.
  int64_t first[kMaxParts + 1];
  for (int part = 0; part <= parts; ++part) {
    int64_t j = n * part / parts;
    while (j > 0 && j < n && key_of(words[j - 1]) == key_of(words[j])) ++j;
    first[part] = j;
  }
  for_each_part(n, parts, [&](int64_t part, int64_t, int64_t) {
    // Before each turn a run starts at `begin`, and the part's runs in front of it are sorted.
    for (int64_t begin = first[part], end; begin < first[part + 1]; begin = end) {
      const uint32_t key = key_of(words[begin]);
      for (end = begin + 1; end < first[part + 1] && key_of(words[end]) == key;) ++end;
      if (end - begin > 1) sort_run(begin, end, 1, counts + part * kCounts);
    }
  });
}

template <class In>
void sort_vector(const In* x, int64_t n, const Keys<In>& keys, Word* words, Word* spare, int threads, uint32_t* counts,
                 const Sorted<In>& out) {
  if constexpr (sizeof(In) > 2) {
    uint32_t *levels = reinterpret_cast<uint32_t*>(words), *spare_levels = reinterpret_cast<uint32_t*>(spare);
    const bool descending = keys.flip != 0;
    if (n > kRanked && n <= kNarrowLevels && sort_by_levels<8>(x, n, descending, levels, spare_levels, counts, out))
      return;
    if (n > kNarrowLevels && n <= kLevelled && sort_by_levels<9>(x, n, descending, levels, spare_levels, counts, out))
      return;
  }
  const int parts = std::min(threads, kMaxParts);
  for_each_part(n, parts, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) words[j] = word(keys(x[j]), j);
  });
  constexpr bool halves = sizeof(In) == 8;
  Word* sorted = sort_words(words, spare, n, sizeof(In) == 2 ? 16 : 32, parts, counts);
  if constexpr (halves) sort_by_lower_half(x, keys, sorted, sorted == words ? spare : words, n, parts, counts);
  for_each_part(n, parts, [&](int64_t, int64_t begin, int64_t end) {
    if (out.order)
      for (int64_t j = begin; j < end; ++j) out.order[j] = int32_t(place_of(sorted[j]));
    if (out.wide_order)
      for (int64_t j = begin; j < end; ++j) out.wide_order[j] = place_of(sorted[j]);
    if (out.values && n < kWideDigits)  // all of x is near
      for (int64_t j = begin; j < end; ++j) out.values[j] = x[place_of(sorted[j])];
    else if (out.values)
      for (int64_t j = begin; j < end; ++j) {
        In entry;
        const bool known = !halves && keys.invert(typename Format<In>::Bits(key_of(sorted[j])), entry);
        out.values[j] = known ? entry : x[place_of(sorted[j])];
      }
  });
}

template <class In>
void sort_vectors(const SortArgs& args, int threads) {
  const Keys<In> keys{typename Format<In>::Bits(args.descending ? ~uint64_t(0) : 0)};
  const Shape& shape = args.shape;
  if (shape.n1 * shape.n2 > kPlaces) cpu::raise_too_long_to_sort(shape.n1 * shape.n2);
  const Tensor<const In> x{static_cast<const In*>(args.x), args.x_strides};
  const Tensor<In> values{static_cast<In*>(args.values), args.values_strides};
  const Tensor<int32_t> order{args.wide_order ? nullptr : static_cast<int32_t*>(args.order), args.order_strides};
  const Tensor<int64_t> wide{args.wide_order ? static_cast<int64_t*>(args.order) : nullptr, args.order_strides};

  const bool adjacent = x.adjacent(shape) && values.adjacent(shape) && order.adjacent(shape) && wide.adjacent(shape);
  const RowBatches batches(shape, adjacent, 4 * kGrain, threads);
  const int64_t n = batches.n;
  const size_t bytes = x.bytes(batches) + values.bytes(batches) + order.bytes(batches) + wide.bytes(batches) +
                       2 * Arena::bytes<Word>(n) +
                       Arena::bytes<uint32_t>(std::min(batches.within, kMaxParts) * kCounts);
  batches.for_each(bytes, [&](int64_t first, int64_t live, Arena arena) {
    const GatheredRows<const In> from(x, batches, first, live, arena);
    const GatheredRows<In> to(values, batches, first, live, arena);
    const GatheredRows<int32_t> places(order, batches, first, live, arena);
    const GatheredRows<int64_t> wide_places(wide, batches, first, live, arena);
    Word *words = arena.take<Word>(n), *spare = arena.take<Word>(n);
    uint32_t* counts = arena.take<uint32_t>(std::min(batches.within, kMaxParts) * kCounts);
    from.load();
    for (int64_t i = 0; i < live; ++i)
      sort_vector(from[i], n, keys, words, spare, batches.within, counts, Sorted<In>{to[i], places[i], wide_places[i]});
    to.store();
    places.store();
    wide_places.store();
  });
}

}  // namespace

void sort(const SortArgs& args, int threads) { HYPERSIMPLEX_DISPATCH(args.dtype, sort_vectors, args, threads); }

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
