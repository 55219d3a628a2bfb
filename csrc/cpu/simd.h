// Vectors as wide as the instruction set at hand, for the sweeps that count: comparisons that feed counts and sums.
// AVX-512 keeps comparisons in mask registers, which a compiler fills and empties again for the plain loops that serve
// everywhere else; everything else is the compiler's own vector arithmetic. Every operation works lane by lane and
// rounds as a plain one does.
#pragma once

#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "../newton.h"
#include "isa.h"

namespace hypersimplex {
namespace HYPERSIMPLEX_ISA {

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
static inline Vector<T> load_vector(const T* from) {
  Vector<T> v;
  memcpy(&v, from, sizeof v);
  return v;
}
template <class T>
static inline void store_vector(const Vector<T>& v, T* to) {
  memcpy(to, &v, sizeof v);
}

#ifdef __AVX512F__
// What a comparison gives, and what may be done where it holds.
using FloatMask = __mmask16;
using DoubleMask = __mmask8;

static inline FloatMask greater(Vector<float> a, Vector<float> b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline DoubleMask greater(Vector<double> a, Vector<double> b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
// Whether a is above b or not a number.
static inline FloatMask beyond(Vector<float> a, Vector<float> b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
static inline DoubleMask beyond(Vector<double> a, Vector<double> b) { return _mm512_cmp_pd_mask(a, b, _CMP_NLE_UQ); }
static inline FloatMask both_greater(FloatMask m, Vector<float> a, Vector<float> b) {
  return _mm512_mask_cmp_ps_mask(m, a, b, _CMP_GT_OQ);
}
static inline DoubleMask both_greater(DoubleMask m, Vector<double> a, Vector<double> b) {
  return _mm512_mask_cmp_pd_mask(m, a, b, _CMP_GT_OQ);
}
static inline Counts<float> counted(FloatMask m, Counts<float> c) {
  return Counts<float>(_mm512_mask_add_epi32(__m512i(c), m, __m512i(c), _mm512_set1_epi32(1)));
}
static inline Counts<double> counted(DoubleMask m, Counts<double> c) {
  return Counts<double>(_mm512_mask_add_epi64(__m512i(c), m, __m512i(c), _mm512_set1_epi64(1)));
}
static inline Vector<float> added(FloatMask m, Vector<float> sum, Vector<float> v) {
  return _mm512_mask_add_ps(sum, m, sum, v);
}
static inline Vector<double> added(DoubleMask m, Vector<double> sum, Vector<double> v) {
  return _mm512_mask_add_pd(sum, m, sum, v);
}
static inline Vector<float> where(FloatMask m, Vector<float> v) { return _mm512_maskz_mov_ps(m, v); }
static inline Vector<double> where(DoubleMask m, Vector<double> v) { return _mm512_maskz_mov_pd(m, v); }
// The entries where m holds, packed to the front of the vector that is stored; returns their number.
static inline int compress(FloatMask m, Vector<float> v, float* to) {
  store_vector<float>(_mm512_maskz_compress_ps(m, v), to);
  return __builtin_popcount(m);
}
static inline int compress(DoubleMask m, Vector<double> v, double* to) {
  store_vector<double>(_mm512_maskz_compress_pd(m, v), to);
  return __builtin_popcount(m);
}
constexpr bool kCompresses = true;
// A bit for each of the lanes whose x is beyond its floor.
template <int kLanes, class T>
static inline unsigned lanes_beyond(const T* x, const T* floor) {
  unsigned lanes = 0;
  for (int l = 0; l < kLanes; l += kVectorLanes<T>)
    lanes |= unsigned(beyond(load_vector(x + l), load_vector(floor + l))) << l;
  return lanes;
}
#else
template <class V>
static inline auto greater(V a, V b) {
  return a > b;
}
template <class V>
static inline auto beyond(V a, V b) {
  return ~(a <= b);
}
template <class M, class V>
static inline M both_greater(M m, V a, V b) {
  return m & (a > b);
}
template <class M>
static inline M counted(M m, M c) {
  return c - m;
}
template <class M, class V>
static inline V where(M m, V v) {
  return V(m & M(v));
}
template <class M, class V>
static inline V added(M m, V sum, V v) {
  return sum + where(m, v);
}
template <class M, class V, class T>
static inline int compress(M m, V v, T* to) {
  int count = 0;
  for (int l = 0; l < kVectorLanes<T>; ++l) {
    to[count] = v[l];
    count -= int(m[l]);
  }
  return count;
}
constexpr bool kCompresses = false;  // one entry after the other: slower than the sweeps it saves
template <int kLanes, class T>
static inline unsigned lanes_beyond(const T* x, const T* floor) {
  Count<T> lanes = 0;
#pragma omp simd reduction(| : lanes)
  for (int l = 0; l < kLanes; ++l) lanes |= Count<T>(!(x[l] <= floor[l])) << l;
  return unsigned(lanes);
}
#endif

}  // namespace HYPERSIMPLEX_ISA
}  // namespace hypersimplex
