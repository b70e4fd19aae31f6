// Comparison results as bits, and the lanes that they pick.
#pragma once

#include "simd/vec.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace pixleap {
namespace {

// Bit i is set where lane i of a comparison's result is.
PIXLEAP_INLINE uint32_t lane_bits(vi mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
  uint32_t bits = 0;
  for (int i = 0; i < VW; i += 8) {  // twice when 16 lanes are emulated on AVX2
    __m256 half;
    std::memcpy(&half, reinterpret_cast<const char*>(&mask) + 4 * i, 32);
    bits |= static_cast<uint32_t>(_mm256_movemask_ps(half)) << i;
  }
  return bits;
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)mask));
#else
  uint32_t bits = 0;
  for (int i = 0; i < VW; ++i) bits |= (mask[i] ? 1u : 0u) << i;
  return bits;
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Row b: the indices of the set bits of b, in order.
struct SetBits {
  uint8_t index[256][8];
  constexpr SetBits() : index{} {
    for (int b = 0; b < 256; ++b)
      for (int i = 0, n = 0; i < 8; ++i)
        if (b >> i & 1) index[b][n++] = static_cast<uint8_t>(i);
  }
};
constexpr SetBits kSetBits;
#endif

// Writes the lanes whose bit is set to the front of to[0, VW), the others are left undefined. No
// branch depends on the bits, which are as random as the data they come from.
PIXLEAP_INLINE void compress(vf v, uint32_t bits, float* to) {
#if defined(__AVX512F__)
  store(to, (vf)_mm512_maskz_compress_ps(static_cast<__mmask16>(bits), (__m512)v));
#elif defined(__AVX2__)
  for (int i = 0; i < VW; i += 8, bits >>= 8) {
    __m256 half;
    std::memcpy(&half, reinterpret_cast<const char*>(&v) + 4 * i, 32);
    __m128i index;
    std::memcpy(&index, kSetBits.index[bits & 0xff], 8);
    half = _mm256_permutevar8x32_ps(half, _mm256_cvtepu8_epi32(index));
    std::memcpy(to, &half, 32);
    to += __builtin_popcount(bits & 0xff);
  }
#else
  for (int i = 0; i < VW; ++i) {
    *to = v[i];
    to += bits >> i & 1;
  }
#endif
}

}  // namespace
}  // namespace pixleap
