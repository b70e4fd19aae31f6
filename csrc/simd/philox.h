// Philox4x32-10 with one group per lane: the same words as philox4x32_10 of core/philox.h.
#pragma once

#include "simd/vec.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace pixleap {
namespace {

struct PhiloxVectors {
  vu v[4];  // word j of every lane's group
};

typedef uint64_t vq __attribute__((vector_size(VW * 4)));

// 64-bit products of the low halves of every 64-bit lane with m.
PIXLEAP_INLINE vq multiply_low(vq a, uint32_t m) {
#if defined(__AVX512F__)
  // GCC 12 warns of what the plain intrinsic leaves undefined.
  return (vq)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi64(m));
#elif defined(__AVX2__)
  vq r;
  for (int i = 0; i < VW; i += 8) {  // twice when 16 lanes are emulated on AVX2
    __m256i x;
    std::memcpy(&x, reinterpret_cast<const char*>(&a) + 4 * i, 32);
    x = _mm256_mul_epu32(x, _mm256_set1_epi64x(m));
    std::memcpy(reinterpret_cast<char*>(&r) + 4 * i, &x, 32);
  }
  return r;
#elif defined(__SSE2__)
  return (vq)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(m));
#else
  return (a & 0xffffffffu) * m;
#endif
}

// The low halves of the lanes of `even`, between those of `odd`.
PIXLEAP_INLINE vu join_halves(vq even, vq odd) {
  const vq upper = vq{} + 0xffffffff00000000u;
  return bit_cast_to<vu>((even & ~upper) | (odd << 32));
}

// Lane i holds the group with counter (group_high[i], group_low[i]). The groups of even and of odd
// lanes go through the rounds apart, each in the low half of a 64-bit lane; what is in the upper
// halves the products pass over.
PIXLEAP_INLINE PhiloxVectors philox_vectors(uint64_t seed, uint64_t offset, vu group_low,
                                            vu group_high) {
  vq c[2][4];
  c[0][0] = bit_cast_to<vq>(group_low);
  c[0][1] = bit_cast_to<vq>(group_high);
  c[1][0] = c[0][0] >> 32;
  c[1][1] = c[0][1] >> 32;
  for (int half = 0; half < 2; ++half) {
    c[half][2] = vq{} + static_cast<uint32_t>(offset);
    c[half][3] = vq{} + (offset >> 32);
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const vq key0 = vq{} + k0, key1 = vq{} + k1;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      vq* x = c[half];
      const vq p0 = multiply_low(x[0], 0xD2511F53u), p1 = multiply_low(x[2], 0xCD9E8D57u);
      x[0] = (p1 >> 32) ^ (x[1] ^ key0);
      x[2] = (p0 >> 32) ^ (x[3] ^ key1);
      x[1] = p1;
      x[3] = p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  PhiloxVectors r;
  for (int j = 0; j < 4; ++j) r.v[j] = join_halves(c[0][j], c[1][j]);
  return r;
}

// Groups [group, group + VW).
PIXLEAP_INLINE PhiloxVectors philox_groups(uint64_t seed, uint64_t offset, uint64_t group) {
  vu lane;
  for (int i = 0; i < VW; ++i) lane[i] = static_cast<uint32_t>(i);
  const vu low = lane + static_cast<uint32_t>(group);
  const vu carry = bit_cast_to<vu>(low < lane);  // -1 where the low half wrapped
  return philox_vectors(seed, offset, low, static_cast<uint32_t>(group >> 32) - carry);
}

// Words of the elements [first, first + count) of a stream. `words` has room for
// count + 4 * VW + 4; the first one is words[first % 4].
PIXLEAP_INLINE void philox_words(uint64_t seed, uint64_t offset, uint64_t first, int64_t count,
                                 uint32_t* words) {
  const int64_t groups = (static_cast<int64_t>(first % 4) + count + 3) / 4;
  for (int64_t g = 0; g < groups; g += VW) {
    const PhiloxVectors r = philox_groups(seed, offset, first / 4 + static_cast<uint64_t>(g));
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
