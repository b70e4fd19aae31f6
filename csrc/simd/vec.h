// One float vector type per translation unit, as wide as its ISA: 16 lanes for avx512 and amx,
// 8 for avx2, 4 for scalar (which GCC and Clang lower to whatever the baseline has).
// Kernels are written once against this file. Everything here has internal linkage: an inline
// helper compiled for AVX-512 must never become the baseline's copy (tools/check_weak_symbols).
// Files are compiled with -ffp-contract=off, so a product and a sum fuse only where fma() says so
// and a tail gives the same bits as the body of a loop.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/dtype.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if !defined(PIXLEAP_VECTOR_WIDTH)
#error "set by cmake/isa.cmake"
#endif

#define PIXLEAP_INLINE [[gnu::always_inline]] static inline

namespace pixleap {
namespace {

constexpr int VW = PIXLEAP_VECTOR_WIDTH;
typedef float vf __attribute__((vector_size(VW * 4)));
typedef int32_t vi __attribute__((vector_size(VW * 4)));
typedef uint32_t vu __attribute__((vector_size(VW * 4)));
typedef uint16_t vh __attribute__((vector_size(VW * 2)));

PIXLEAP_INLINE vf splat(float x) { return x - vf{}; }
PIXLEAP_INLINE vi splat_int(int32_t x) { return x - vi{}; }
template <class To, class From>
PIXLEAP_INLINE To bit_cast_to(From x) {
  To y;
  static_assert(sizeof x == sizeof y);
  std::memcpy(&y, &x, sizeof y);
  return y;
}

// a * b + c with one rounding where the ISA has FMA.
PIXLEAP_INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  vf r;
  for (int i = 0; i < VW; i += 8) {  // twice when 16 lanes are emulated on AVX2
    __m256 x, y, z;
    std::memcpy(&x, reinterpret_cast<const char*>(&a) + 4 * i, 32);
    std::memcpy(&y, reinterpret_cast<const char*>(&b) + 4 * i, 32);
    std::memcpy(&z, reinterpret_cast<const char*>(&c) + 4 * i, 32);
    z = _mm256_fmadd_ps(x, y, z);
    std::memcpy(reinterpret_cast<char*>(&r) + 4 * i, &z, 32);
  }
  return r;
#else
  return a * b + c;
#endif
}

PIXLEAP_INLINE vf select(vi mask, vf yes, vf no) { return mask ? yes : no; }
// NaN in `a` is kept by both (the comparison is false). GCC 12 makes a comparison and a blend of
// the plain form.
#if defined(__AVX512F__)
PIXLEAP_INLINE vf vmin(vf a, vf b) { return (vf)_mm512_maskz_min_ps(0xffff, (__m512)b, (__m512)a); }
PIXLEAP_INLINE vf vmax(vf a, vf b) { return (vf)_mm512_maskz_max_ps(0xffff, (__m512)b, (__m512)a); }
#elif defined(__AVX2__) && PIXLEAP_VECTOR_WIDTH == 8
PIXLEAP_INLINE vf vmin(vf a, vf b) { return (vf)_mm256_min_ps((__m256)b, (__m256)a); }
PIXLEAP_INLINE vf vmax(vf a, vf b) { return (vf)_mm256_max_ps((__m256)b, (__m256)a); }
#else
PIXLEAP_INLINE vf vmin(vf a, vf b) { return b < a ? b : a; }
PIXLEAP_INLINE vf vmax(vf a, vf b) { return b > a ? b : a; }
#endif
PIXLEAP_INLINE vf vabs(vf a) { return bit_cast_to<vf>(bit_cast_to<vu>(a) & 0x7fffffffu); }

PIXLEAP_INLINE vf load(const float* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
PIXLEAP_INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

// From and to 16 bits; GCC 12 converts half vectors at a time.
PIXLEAP_INLINE vu widen(const uint16_t* p) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  vu v;
  for (int i = 0; i < VW; i += 8) {
    const __m256i x =
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i)));
    std::memcpy(reinterpret_cast<char*>(&v) + 4 * i, &x, 32);
  }
  return v;
#else
  vh h;
  std::memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, vu);
#endif
}
// Lanes are below 2^16.
PIXLEAP_INLINE vh narrow(vu v) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  vh h;
  for (int i = 0; i < VW; i += 8) {
    __m128i low, high;
    std::memcpy(&low, reinterpret_cast<const char*>(&v) + 4 * i, 16);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + 4 * i + 16, 16);
    low = _mm_packus_epi32(low, high);
    std::memcpy(reinterpret_cast<char*>(&h) + 2 * i, &low, 16);
  }
  return h;
#else
  return __builtin_convertvector(v, vh);
#endif
}

PIXLEAP_INLINE vf load(const bf16_t* p) {
  return bit_cast_to<vf>(widen(reinterpret_cast<const uint16_t*>(p)) << 16);
}
PIXLEAP_INLINE void store(bf16_t* p, vf v) {  // round to nearest even, NaN stays NaN
  const vu u = bit_cast_to<vu>(v);
  vu r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  r = (v != v) ? ((u >> 16) | 0x40u) : r;
  const vh h = narrow(r);
  std::memcpy(p, &h, sizeof h);
}

// Whether any lane of a comparison is true.
PIXLEAP_INLINE bool any(vi mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  int bits = 0;
  for (int i = 0; i < VW; i += 8) {  // twice when 16 lanes are emulated on AVX2
    __m256i m;
    std::memcpy(&m, reinterpret_cast<const char*>(&mask) + 4 * i, 32);
    bits |= _mm256_movemask_epi8(m);
  }
  return bits != 0;
#else
  int32_t bits = 0;
  for (int i = 0; i < VW; ++i) bits |= mask[i];
  return bits != 0;
#endif
}

// 2 * VW elements, those of even and of odd position apart: without the shuffles by which `load`
// and `store` widen and narrow, for loops in which the order of lanes does not matter.
PIXLEAP_INLINE void load_pairs(const bf16_t* p, vf& even, vf& odd) {
  vu u;
  std::memcpy(&u, p, sizeof u);
  even = bit_cast_to<vf>(u << 16);
  odd = bit_cast_to<vf>(u & 0xffff0000u);
}
template <bool Nan>
PIXLEAP_INLINE void store_pairs(bf16_t* p, vf even, vf odd) {  // rounds as `store`
  const vu e = bit_cast_to<vu>(even), o = bit_cast_to<vu>(odd);
  vu low = (e + 0x7fffu + ((e >> 16) & 1u)) >> 16;
  vu high = o + 0x7fffu + ((o >> 16) & 1u);
  if (Nan) {
    low = (even != even) ? ((e >> 16) | 0x40u) : low;
    high = (odd != odd) ? (o | 0x400000u) : high;
  }
  const vu both = low | (high & 0xffff0000u);
  std::memcpy(p, &both, sizeof both);
}
// U (2 or 4) vectors, even and odd ones in turn.
template <int U>
PIXLEAP_INLINE void store_pairs(bf16_t* p, const vf (&x)[U]) {
  const vf sum = x[0] + x[1] + (x[U - 2] + x[U - 1]);  // a NaN if there is one among them
  const auto store_all = [&]<bool Nan>() __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int u = 0; u < U; u += 2) store_pairs<Nan>(p + u * VW, x[u], x[u + 1]);
  };
  if (__builtin_expect(any(sum != sum), 0)) {
    store_all.template operator()<true>();
  } else {
    store_all.template operator()<false>();
  }
}

PIXLEAP_INLINE vf load(const f16_t* p) {
#if defined(__AVX512F__)
  // GCC 12 warns of what the plain intrinsic leaves undefined.
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (vf)_mm512_maskz_cvtph_ps(0xffff, h);
#elif defined(__F16C__)
  vf v;
  for (int i = 0; i < VW; i += 8) {
    const __m256 x = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i)));
    std::memcpy(reinterpret_cast<char*>(&v) + 4 * i, &x, 32);
  }
  return v;
#else
  // Shift the exponent into place and rescale by a power of two: exact, subnormals included.
  vh h;
  std::memcpy(&h, p, sizeof h);
  const vu u = __builtin_convertvector(h, vu);
  const vu sign = (u & 0x8000u) << 16, magnitude = (u & 0x7fffu) << 13;
  const vf scaled = bit_cast_to<vf>(magnitude) * 0x1p112f;
  const vu special = magnitude | 0x7f800000u;  // inf and NaN
  const vu bits = (u & 0x7c00u) == 0x7c00u ? special : bit_cast_to<vu>(scaled);
  return bit_cast_to<vf>(bits | sign);
#endif
}
PIXLEAP_INLINE void store(f16_t* p, vf v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  for (int i = 0; i < VW; i += 8) {
    __m256 x;
    std::memcpy(&x, reinterpret_cast<const char*>(&v) + 4 * i, 32);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i),
                     _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
#else
  const vu u = bit_cast_to<vu>(v);
  const vu sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  // Normal range: rebias and round to nearest even. Below 2^-14: adding 0.5 leaves the rounded
  // subnormal in the low mantissa bits.
  const vu normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const vu tiny = bit_cast_to<vu>(bit_cast_to<vf>(magnitude) + 0.5f) - 0x3f000000u;
  vu r = magnitude < 0x38800000u ? tiny : normal;
  r = magnitude >= 0x477ff000u ? vu{} + 0x7c00u : r;
  r = magnitude > 0x7f800000u ? (vu{} + 0x7e00u) : r;
  const vh h = __builtin_convertvector(r | sign, vh);
  std::memcpy(p, &h, sizeof h);
#endif
}

PIXLEAP_INLINE vf load(const int8_t* p) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  vf v;
  for (int i = 0; i < VW; i += 8) {
    const __m256 x = _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + i))));
    std::memcpy(reinterpret_cast<char*>(&v) + 4 * i, &x, 32);
  }
  return v;
#else
  typedef int8_t vb __attribute__((vector_size(VW)));
  vb b;
  std::memcpy(&b, p, sizeof b);
  return __builtin_convertvector(b, vf);
#endif
}

// First n lanes (0 <= n <= VW); the others read as zero.
template <class T>
PIXLEAP_INLINE vf load_n(const T* p, int64_t n) {
  T buffer[VW] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(T));
  return load(buffer);
}
template <class T>
PIXLEAP_INLINE void store_n(T* p, vf v, int64_t n) {
  T buffer[VW];
  store(buffer, v);
  std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(T));
}

// One element, for strided access.
PIXLEAP_INLINE float to_float(float x) { return x; }
PIXLEAP_INLINE float to_float(bf16_t x) {
  return bit_cast_to<float>(static_cast<uint32_t>(x.bits) << 16);
}
PIXLEAP_INLINE float to_float(f16_t x) { return load_n(&x, 1)[0]; }

// Sum and maximum over the lanes, in a fixed pairwise order.
PIXLEAP_INLINE float reduce_add(vf v) {
  float a[VW];
  store(a, v);
  for (int step = VW / 2; step; step /= 2)
    for (int i = 0; i < step; ++i) a[i] += a[i + step];
  return a[0];
}
PIXLEAP_INLINE float reduce_max(vf v) {
  float a[VW];
  store(a, v);
  float m = a[0];
  for (int i = 1; i < VW; ++i) m = a[i] > m ? a[i] : m;
  return m;
}

// Calls body(i, n) for i = 0, VW, ...; n < VW only at the end. With load_n/store_n in the tail.
template <class Body>
PIXLEAP_INLINE void for_each_vector(int64_t count, Body&& body) {
  int64_t i = 0;
  for (; i + VW <= count; i += VW) body(i, static_cast<int64_t>(VW));
  if (i < count) body(i, count - i);
}
template <class T>
PIXLEAP_INLINE vf load_upto(const T* p, int64_t n) {
  return n == VW ? load(p) : load_n(p, n);
}
template <class T>
PIXLEAP_INLINE void store_upto(T* p, vf v, int64_t n) {
  n == VW ? store(p, v) : store_n(p, v, n);
}

}  // namespace
}  // namespace pixleap
