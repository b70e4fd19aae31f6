#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.h"

// Random numbers that depend only on (seed, offset, element index): Philox4x32-10 of Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
//
// Everything here, the normals included, gives the same bits on every CPU and GPU. That is why the
// logarithm, sine and cosine are written out: library versions differ in the last bit. They use
// correctly rounded operations only, and every multiply-add that rounds is an explicit fma: there
// is nothing for -ffp-contract or -fmad to change. -ffast-math and --use_fast_math do break it.
//
// Functions are static so that a translation unit compiled for AVX-512 keeps its copies to itself.

namespace pixleap {

struct Philox4 {
  uint32_t v[4];
};

struct NormalPair {
  float first;
  float second;
};

// `key` is the seed. The 128-bit counter is (counter_hi, counter_lo), which the samplers fill with
// (offset, element / 4).
PIXLEAP_HD static constexpr Philox4 philox4x32_10(uint64_t key, uint64_t counter_lo,
                                                  uint64_t counter_hi) {
  uint32_t c0 = static_cast<uint32_t>(counter_lo);
  uint32_t c1 = static_cast<uint32_t>(counter_lo >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_hi);
  uint32_t c3 = static_cast<uint32_t>(counter_hi >> 32);
  uint32_t k0 = static_cast<uint32_t>(key);
  uint32_t k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Philox4{{c0, c1, c2, c3}};
}

// The 32 random bits of one element of a stream. Loops should take four elements per call instead.
PIXLEAP_HD static constexpr uint32_t philox_element(uint64_t seed, uint64_t offset,
                                                    uint64_t element) {
  const Philox4 group = philox4x32_10(seed, element / 4, offset);
  // Not v[element % 4], which would send the group through local memory on a GPU.
  const bool odd = (element & 1) != 0;
  return (element & 2) == 0 ? (odd ? group.v[1] : group.v[0]) : (odd ? group.v[3] : group.v[2]);
}

// In (0, 1): the midpoints of 2^23 equal intervals. All are exact, so 0 and 1 never come out.
PIXLEAP_HD static constexpr float uniform_open(uint32_t x) {
  return (static_cast<float>(x >> 9) + 0.5f) * 0x1p-23f;
}

// In (0, 1): the midpoints of 2^52 equal intervals.
PIXLEAP_HD static constexpr double uniform_open_double(uint32_t hi, uint32_t lo) {
  const uint64_t bits = (static_cast<uint64_t>(hi) << 32) | lo;
  return (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
}

namespace philox_detail {

PIXLEAP_HD static inline float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

PIXLEAP_HD static inline float sqrt(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

// ln(u) for normal u > 0, to about 1 ulp. With u = 2^e (1 + f), 1 + f in [sqrt(1/2), sqrt(2)):
// ln(u) = e ln2 + f - f^2/2 + f^3 P(f), P minimax of degree 7.
PIXLEAP_HD static inline float log(float u) {
  uint32_t bits;
  memcpy(&bits, &u, sizeof bits);
  // Subtracting the bits of sqrt(1/2) puts the exponent of the nearest such 2^e on top.
  const int32_t e = static_cast<int32_t>(bits - 0x3F3504F3u) >> 23;
  bits -= static_cast<uint32_t>(e) << 23;
  float m;
  memcpy(&m, &bits, sizeof m);
  const float f = m - 1.0f;
  const float exponent = static_cast<float>(e);
  float p = -0.0763449296f;
  p = fma(p, f, 0.12761575f);
  p = fma(p, f, -0.131601825f);
  p = fma(p, f, 0.142017588f);
  p = fma(p, f, -0.166233569f);
  p = fma(p, f, 0.200012267f);
  p = fma(p, f, -0.250008196f);
  p = fma(p, f, 0.333333313f);
  const float f2 = f * f;
  // ln2 in two parts; the upper has few bits, so that its product with e is exact.
  float tail = fma(exponent, -2.12194440e-4f, (p * f) * f2);
  tail = fma(-0.5f, f2, tail);
  return fma(exponent, 0.693359375f, f + tail);
}

}  // namespace philox_detail

// Two independent standard normals from two random words (Box-Muller). |z| <= 5.77, the radius
// that belongs to the smallest uniform.
PIXLEAP_HD static inline NormalPair box_muller(uint32_t a, uint32_t b) {
  const float radius = philox_detail::sqrt(-2.0f * philox_detail::log(uniform_open(a)));
  // The angle is 2 pi u = (pi/2) (quadrant + r) with r in [-1/2, 1/2]; both parts are exact.
  const float turns = 4.0f * uniform_open(b);
  const int quadrant = static_cast<int>(turns + 0.5f);
  const float r = turns - static_cast<float>(quadrant);
  const float s = r * r;
  float sine = -0.00460165786f;
  sine = philox_detail::fma(sine, s, 0.079680033f);
  sine = philox_detail::fma(sine, s, -0.64596349f);
  sine = philox_detail::fma(sine, s, 1.57079637f);
  sine = sine * r;
  float cosine = 0.000903766544f;
  cosine = philox_detail::fma(cosine, s, -0.0208601654f);
  cosine = philox_detail::fma(cosine, s, 0.253669232f);
  cosine = philox_detail::fma(cosine, s, -1.23370051f);
  cosine = philox_detail::fma(cosine, s, 1.0f);
  // Quarter turns: (cos, sin) -> (-sin, cos).
  const bool odd = (quadrant & 1) != 0;
  const float x = odd ? sine : cosine;
  const float y = odd ? cosine : sine;
  const bool flip_x = ((quadrant + 1) & 2) != 0;
  const bool flip_y = (quadrant & 2) != 0;
  return NormalPair{radius * (flip_x ? -x : x), radius * (flip_y ? -y : y)};
}

// The normal of one element of a stream. Lanes (0, 1) and (2, 3) of a group make a pair each.
PIXLEAP_HD static inline float philox_normal(uint64_t seed, uint64_t offset, uint64_t element) {
  const Philox4 group = philox4x32_10(seed, element / 4, offset);
  const bool upper = (element & 2) != 0;
  const NormalPair pair =
      box_muller(upper ? group.v[2] : group.v[0], upper ? group.v[3] : group.v[1]);
  return (element & 1) == 0 ? pair.first : pair.second;
}

}  // namespace pixleap
