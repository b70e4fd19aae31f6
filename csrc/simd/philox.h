// Philox4x32-10 with one group per lane: the same words as philox4x32_10 of core/philox.h.
#pragma once

#include "simd/vec.h"

namespace pixleap {
namespace {

struct PhiloxVectors {
  vu v[4];  // word j of every lane's group
};

// Both halves of the 64-bit products a * m.
PIXLEAP_INLINE void multiply_wide(vu a, uint32_t m, vu& high, vu& low) {
  typedef uint64_t vq __attribute__((vector_size(VW * 4)));
  const vq q = bit_cast_to<vq>(a);
#if defined(__AVX512F__)
  const __m512i factor = _mm512_set1_epi64(m);
  const vq even = (vq)_mm512_mul_epu32((__m512i)q, factor);
  const vq odd = (vq)_mm512_mul_epu32((__m512i)(q >> 32), factor);
#elif defined(__AVX2__)
  const vq shifted = q >> 32;
  vq even, odd;
  for (int i = 0; i < VW; i += 8) {  // twice when 16 lanes are emulated on AVX2
    const __m256i factor = _mm256_set1_epi64x(m);
    __m256i x, y;
    std::memcpy(&x, reinterpret_cast<const char*>(&q) + 4 * i, 32);
    std::memcpy(&y, reinterpret_cast<const char*>(&shifted) + 4 * i, 32);
    x = _mm256_mul_epu32(x, factor);
    y = _mm256_mul_epu32(y, factor);
    std::memcpy(reinterpret_cast<char*>(&even) + 4 * i, &x, 32);
    std::memcpy(reinterpret_cast<char*>(&odd) + 4 * i, &y, 32);
  }
#else
  const vq even = (q & 0xffffffffu) * m, odd = (q >> 32) * m;
#endif
  const vq upper = vq{} + 0xffffffff00000000u;
  high = bit_cast_to<vu>((even >> 32) | (odd & upper));
  low = bit_cast_to<vu>((even & ~upper) | (odd << 32));
}

// Lane i holds the group with counter (group_high[i], group_low[i]).
PIXLEAP_INLINE PhiloxVectors philox_vectors(uint64_t seed, uint64_t offset, vu group_low,
                                            vu group_high) {
  vu c0 = group_low, c1 = group_high;
  vu c2 = vu{} + static_cast<uint32_t>(offset), c3 = vu{} + static_cast<uint32_t>(offset >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    vu high0, low0, high2, low2;
    multiply_wide(c0, 0xD2511F53u, high0, low0);
    multiply_wide(c2, 0xCD9E8D57u, high2, low2);
    c0 = high2 ^ c1 ^ k0;
    c2 = high0 ^ c3 ^ k1;
    c1 = low2;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Words of the elements [first, first + count) of a stream. `words` has room for
// count + 4 * VW + 4; the first one is words[first % 4].
PIXLEAP_INLINE void philox_words(uint64_t seed, uint64_t offset, uint64_t first, int64_t count,
                                 uint32_t* words) {
  const int64_t groups = (static_cast<int64_t>(first % 4) + count + 3) / 4;
  vu lane;
  for (int i = 0; i < VW; ++i) lane[i] = static_cast<uint32_t>(i);
  for (int64_t g = 0; g < groups; g += VW) {
    const uint64_t group = first / 4 + static_cast<uint64_t>(g);
    const vu low = lane + static_cast<uint32_t>(group);
    const vu carry = bit_cast_to<vu>(low < lane);  // -1 where the low half wrapped
    const PhiloxVectors r =
        philox_vectors(seed, offset, low, static_cast<uint32_t>(group >> 32) - carry);
    uint32_t* out = words + 4 * g;
    for (int i = 0; i < VW; ++i)
      for (int j = 0; j < 4; ++j) out[4 * i + j] = r.v[j][i];
  }
}

// uniform_open of core/philox.h; words of 31 bits and less convert exactly.
PIXLEAP_INLINE vf uniform_open_vector(vu words) {
  return (__builtin_convertvector(bit_cast_to<vi>(words >> 9), vf) + 0.5f) * 0x1p-23f;
}

}  // namespace
}  // namespace pixleap
