// Vectors as wide as the instruction set at hand, for the sweeps that count: comparisons that feed counts and sums.
// AVX-512 keeps comparisons in mask registers, which a compiler fills and empties again for the plain loops that serve
// everywhere else; everything else is the compiler's own vector arithmetic. Every operation works lane by lane and
// rounds as a plain one does.
#pragma once

#include <cstring>

#ifdef __AVX__
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "cpu/simd/isa.h"
#include "newton.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

constexpr int kGroup = 16;  // lanes that loops take together, whatever a vector holds: so no result depends on that

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
using Count = typename BitsOf<T>::type;

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
using Counts = Vector<Count<T>>;

template <class T>
constexpr int kVectorLanes = kVectorBytes / int(sizeof(T));
template <class T>
constexpr int kVectors = kGroup / kVectorLanes<T>;  // of a group

template <class T>
static inline Vector<T> load_vector(const T* from) {
  Vector<T> v;
  memcpy(&v, from, sizeof v);
  return v;
}
template <class T>
static inline void store_vector(const Vector<T>& v, T* to) {
  memcpy(to, &v, sizeof v);
}

// 0, 1, 2, ...
template <class T>
static inline Counts<T> lane_numbers() {
  Count<T> lanes[kVectorLanes<T>];
  for (int l = 0; l < kVectorLanes<T>; ++l) lanes[l] = l;
  Counts<T> v;
  memcpy(&v, lanes, sizeof v);
  return v;
}

// The first `count` lanes, all of them at most.
template <class T>
static inline void store_lanes(const Vector<T>& v, T* to, int64_t count) {
  if (count >= kVectorLanes<T>) return store_vector<T>(v, to);
  if (count <= 0) return;
#ifdef __AVX512F__
  const unsigned lanes = (1u << count) - 1;
  if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(to, __mmask16(lanes), v);
  else
    _mm512_mask_storeu_pd(to, __mmask8(lanes), v);
#else
  memcpy(to, &v, size_t(count) * sizeof(T));
#endif
}

// A comparison gives a mask, which says for every lane whether it holds.
#ifdef __AVX512F__
using FloatMask = __mmask16;
using DoubleMask = __mmask8;

static inline FloatMask greater(Vector<float> a, Vector<float> b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline DoubleMask greater(Vector<double> a, Vector<double> b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
// Whether a is above b or not a number.
static inline FloatMask greater_or_nan(Vector<float> a, Vector<float> b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ);
}
static inline DoubleMask greater_or_nan(Vector<double> a, Vector<double> b) {
  return _mm512_cmp_pd_mask(a, b, _CMP_NLE_UQ);
}
static inline FloatMask equal(Vector<float> a, Vector<float> b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static inline DoubleMask equal(Vector<double> a, Vector<double> b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
static inline FloatMask equal(Counts<float> a, Counts<float> b) {
  return _mm512_cmpeq_epi32_mask(__m512i(a), __m512i(b));
}
static inline DoubleMask equal(Counts<double> a, Counts<double> b) {
  return _mm512_cmpeq_epi64_mask(__m512i(a), __m512i(b));
}
static inline FloatMask greater(Counts<float> a, Counts<float> b) {
  return _mm512_cmpgt_epi32_mask(__m512i(a), __m512i(b));
}
static inline DoubleMask greater(Counts<double> a, Counts<double> b) {
  return _mm512_cmpgt_epi64_mask(__m512i(a), __m512i(b));
}
static inline FloatMask both_greater(FloatMask m, Vector<float> a, Vector<float> b) {
  return _mm512_mask_cmp_ps_mask(m, a, b, _CMP_GT_OQ);
}
static inline DoubleMask both_greater(DoubleMask m, Vector<double> a, Vector<double> b) {
  return _mm512_mask_cmp_pd_mask(m, a, b, _CMP_GT_OQ);
}
static inline FloatMask and_not(FloatMask a, FloatMask b) { return _kandn_mask16(b, a); }
static inline DoubleMask and_not(DoubleMask a, DoubleMask b) { return _kandn_mask8(b, a); }
static inline bool any(FloatMask m) { return m != 0; }
static inline bool any(DoubleMask m) { return m != 0; }
static inline Counts<float> add_one_where(FloatMask m, Counts<float> c) {
  return Counts<float>(_mm512_mask_add_epi32(__m512i(c), m, __m512i(c), _mm512_set1_epi32(1)));
}
static inline Counts<double> add_one_where(DoubleMask m, Counts<double> c) {
  return Counts<double>(_mm512_mask_add_epi64(__m512i(c), m, __m512i(c), _mm512_set1_epi64(1)));
}
static inline Vector<float> add_where(FloatMask m, Vector<float> sum, Vector<float> v) {
  return _mm512_mask_add_ps(sum, m, sum, v);
}
static inline Vector<double> add_where(DoubleMask m, Vector<double> sum, Vector<double> v) {
  return _mm512_mask_add_pd(sum, m, sum, v);
}
static inline Vector<float> zero_unless(FloatMask m, Vector<float> v) { return _mm512_maskz_mov_ps(m, v); }
static inline Vector<double> zero_unless(DoubleMask m, Vector<double> v) { return _mm512_maskz_mov_pd(m, v); }
static inline Vector<float> select(FloatMask m, Vector<float> v, Vector<float> w) {
  return _mm512_mask_blend_ps(m, w, v);
}
static inline Vector<double> select(DoubleMask m, Vector<double> v, Vector<double> w) {
  return _mm512_mask_blend_pd(m, w, v);
}
static inline Counts<float> select(FloatMask m, Counts<float> v, Counts<float> w) {
  return Counts<float>(_mm512_mask_blend_epi32(m, __m512i(w), __m512i(v)));
}
static inline Counts<double> select(DoubleMask m, Counts<double> v, Counts<double> w) {
  return Counts<double>(_mm512_mask_blend_epi64(m, __m512i(w), __m512i(v)));
}

// A bit per lane of a mask.
static inline unsigned bits(FloatMask m) { return m; }
static inline unsigned bits(DoubleMask m) { return m; }

// Appends the entries where m holds; how many they are. Writes as far as a whole vector.
static inline int compress_store(FloatMask m, Vector<float> v, float* to) {
  store_vector<float>(_mm512_maskz_compress_ps(m, v), to);
  return __builtin_popcount(m);
}
static inline int compress_store(DoubleMask m, Vector<double> v, double* to) {
  store_vector<double>(_mm512_maskz_compress_pd(m, v), to);
  return __builtin_popcount(m);
}

// Appends first + l for every lane l of the mask, likewise.
static inline int compress_store_places(FloatMask m, int32_t first, int32_t* to) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i places = _mm512_maskz_compress_epi32(m, _mm512_add_epi32(lanes, _mm512_set1_epi32(first)));
  memcpy(to, &places, sizeof places);
  return __builtin_popcount(m);
}
static inline int compress_store_places(DoubleMask m, int32_t first, int32_t* to) {
  return compress_store_places(FloatMask(m), first, to);
}

// Four chunks of 16 bytes that lie `pitch` entries apart.
template <class T>
static inline Vector<T> load_four(const T* from, int64_t pitch) {
  auto chunk = [&](int c) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + c * pitch)); };
  __m512i v = _mm512_castsi128_si512(chunk(0));
  v = _mm512_inserti32x4(v, chunk(1), 1);
  v = _mm512_inserti32x4(v, chunk(2), 2);
  v = _mm512_inserti32x4(v, chunk(3), 3);
  return Vector<T>(v);
}
#else
template <class V>
static inline auto greater(V a, V b) {
  return a > b;
}
template <class V>
static inline auto greater_or_nan(V a, V b) {
  return ~(a <= b);
}
template <class V>
static inline auto equal(V a, V b) {
  return a == b;
}
template <class M, class V>
static inline M both_greater(M m, V a, V b) {
  return m & (a > b);
}
template <class M>
static inline M and_not(M a, M b) {
  return a & ~b;
}
template <class M>
static inline bool any(M m) {
  decltype(m[0] + 0) lanes[sizeof m / sizeof m[0]], found = 0;
  memcpy(lanes, &m, sizeof m);
  for (auto lane : lanes) found |= lane;
  return found != 0;
}
template <class M>
static inline M add_one_where(M m, M c) {
  return c - m;
}
template <class M, class V>
static inline V zero_unless(M m, V v) {
  return V(m & M(v));
}
template <class M, class V>
static inline V add_where(M m, V sum, V v) {
  return sum + zero_unless(m, v);
}
template <class M, class V>
static inline V select(M m, V v, V w) {
  return m ? v : w;
}
// A bit per lane of a mask.
template <class M>
static inline unsigned bits(M m) {
#if defined(__AVX__)
  return unsigned(sizeof m[0] == 4 ? _mm256_movemask_ps(__m256(m)) : _mm256_movemask_pd(__m256d(m)));
#elif defined(__SSE2__)
  return unsigned(sizeof m[0] == 4 ? _mm_movemask_ps(__m128(m)) : _mm_movemask_pd(__m128d(m)));
#else
  unsigned found = 0;
  for (int l = 0; l < int(sizeof m / sizeof m[0]); ++l) found |= unsigned(m[l] != 0) << l;
  return found;
#endif
}
#if defined(__AVX2__) && defined(__BMI2__)
// `ones` has a bit for each kept lane at the bottom of its bytes: the places of the 4-byte parts to keep, a byte each.
static inline __m256i kept_parts(uint64_t ones, uint64_t filled) {
  return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(_pext_u64(0x0706050403020100u, ones * filled))));
}
static inline int compress_store(Counts<float> m, Vector<float> v, float* to) {
  const unsigned kept = bits(m);
  const __m256i parts = kept_parts(_pdep_u64(kept, 0x0101010101010101u), 0xff);
  store_vector<float>(_mm256_permutevar8x32_ps(v, parts), to);
  return __builtin_popcount(kept);
}
static inline int compress_store(Counts<double> m, Vector<double> v, double* to) {
  const unsigned kept = bits(m);
  const __m256i parts = kept_parts(_pdep_u64(kept, 0x0001000100010001u), 0xffff);
  store_vector<double>(Vector<double>(_mm256_permutevar8x32_epi32(__m256i(v), parts)), to);
  return __builtin_popcount(kept);
}
#else
template <class M, class V, class T>
static inline int compress_store(M m, V v, T* to) {
  int count = 0;
  for (unsigned kept = bits(m); kept != 0; kept &= kept - 1) to[count++] = v[__builtin_ctz(kept)];
  return count;
}
#endif
template <class M>
static inline int compress_store_places(M m, int32_t first, int32_t* to) {
  int count = 0;
  for (unsigned kept = bits(m); kept != 0; kept &= kept - 1) to[count++] = first + __builtin_ctz(kept);
  return count;
}
#endif
template <class V>
static inline V min(V a, V b) {
  return a < b ? a : b;
}
template <class V>
static inline V max(V a, V b) {
  return a > b ? a : b;
}

// A bit for each lane whose x is beyond its floor.
template <int kLanes, class T>
static inline unsigned bits_greater_or_nan(const T* x, const T* floor) {
  unsigned lanes = 0;
  for (int l = 0; l < kLanes; l += kVectorLanes<T>)
    lanes |= bits(greater_or_nan(load_vector(x + l), load_vector(floor + l))) << l;
  return lanes;
}

template <class T>
using Mask = decltype(greater(Vector<T>{}, Vector<T>{}));

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
