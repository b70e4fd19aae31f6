// Standard normal numbers of a Philox stream: element e is lane e % 4 of group e / 4, so the same
// numbers come out for any vector width, thread count or split of a batch. They are those of
// philox_normal (core/philox.h) bit for bit: every step here is the same correctly rounded one.
#pragma once

#include <utility>

#include "simd/philox.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

// What draw_normals may write beyond the count: a whole step, and the start of the first group.
constexpr int64_t kNormalSlack = 4 * VW + 4;

// a * b + c with one rounding on every ISA.
PIXLEAP_INLINE vf exact_fma(vf a, vf b, vf c) {
#if defined(__FMA__) || defined(__AVX512F__)
  return fma(a, b, c);
#else
  vf r;
  for (int i = 0; i < VW; ++i) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return r;
#endif
}

PIXLEAP_INLINE vf vsqrt(vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#else
  vf r;
#if defined(__AVX2__)
  for (int i = 0; i < VW; i += 8) {  // twice when 16 lanes are emulated on AVX2
    __m256 y;
    std::memcpy(&y, reinterpret_cast<const char*>(&x) + 4 * i, 32);
    y = _mm256_sqrt_ps(y);
    std::memcpy(reinterpret_cast<char*>(&r) + 4 * i, &y, 32);
  }
#elif defined(__SSE2__)
  r = (vf)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < VW; ++i) r[i] = __builtin_sqrtf(x[i]);
#endif
  return r;
#endif
}

// philox_detail::log.
PIXLEAP_INLINE vf normal_log(vf u) {
  vi bits = bit_cast_to<vi>(u);
  const vi e = (bits - 0x3F3504F3) >> 23;
  const vf f = bit_cast_to<vf>(bits - (e << 23)) - 1.0f;
  const vf exponent = __builtin_convertvector(e, vf);
  vf p = splat(-0.0763449296f);
  p = exact_fma(p, f, splat(0.12761575f));
  p = exact_fma(p, f, splat(-0.131601825f));
  p = exact_fma(p, f, splat(0.142017588f));
  p = exact_fma(p, f, splat(-0.166233569f));
  p = exact_fma(p, f, splat(0.200012267f));
  p = exact_fma(p, f, splat(-0.250008196f));
  p = exact_fma(p, f, splat(0.333333313f));
  const vf f2 = f * f;
  vf tail = exact_fma(exponent, splat(-2.12194440e-4f), (p * f) * f2);
  tail = exact_fma(splat(-0.5f), f2, tail);
  return exact_fma(exponent, splat(0.693359375f), f + tail);
}

// box_muller on every lane.
PIXLEAP_INLINE void normal_pair(vu a, vu b, vf& first, vf& second) {
  const vf radius = vsqrt(-2.0f * normal_log(uniform_open_vector(a)));
  const vf turns = 4.0f * uniform_open_vector(b);
  const vi quadrant = __builtin_convertvector(turns + 0.5f, vi);
  const vf r = turns - __builtin_convertvector(quadrant, vf);
  const vf s = r * r;
  vf sine = splat(-0.00460165786f);
  sine = exact_fma(sine, s, splat(0.079680033f));
  sine = exact_fma(sine, s, splat(-0.64596349f));
  sine = exact_fma(sine, s, splat(1.57079637f));
  sine = sine * r;
  vf cosine = splat(0.000903766544f);
  cosine = exact_fma(cosine, s, splat(-0.0208601654f));
  cosine = exact_fma(cosine, s, splat(0.253669232f));
  cosine = exact_fma(cosine, s, splat(-1.23370051f));
  cosine = exact_fma(cosine, s, splat(1.0f));
  const vi odd = (quadrant & 1) != 0;
  const vu flip_x = bit_cast_to<vu>((quadrant + 1) & 2) << 30;  // into the sign
  const vu flip_y = bit_cast_to<vu>(quadrant & 2) << 30;
  const vf x = select(odd, sine, cosine), y = select(odd, cosine, sine);
  first = radius * bit_cast_to<vf>(bit_cast_to<vu>(x) ^ flip_x);
  second = radius * bit_cast_to<vf>(bit_cast_to<vu>(y) ^ flip_y);
}

// Lanes 4 i + j of the result, over 4 * VW numbers, are z[j][i].
template <int... I>
PIXLEAP_INLINE void store_groups(const vf (&z)[4], float* to, std::integer_sequence<int, I...>) {
  // Halves of pairs (0, 1) and (2, 3), then pairs of those.
  const vf low01 = __builtin_shufflevector(z[0], z[1], (I % 2 * VW + I / 2)...);
  const vf high01 = __builtin_shufflevector(z[0], z[1], (I % 2 * VW + VW / 2 + I / 2)...);
  const vf low23 = __builtin_shufflevector(z[2], z[3], (I % 2 * VW + I / 2)...);
  const vf high23 = __builtin_shufflevector(z[2], z[3], (I % 2 * VW + VW / 2 + I / 2)...);
  store(to, __builtin_shufflevector(low01, low23, (I / 2 % 2 * VW + I / 4 * 2 + I % 2)...));
  store(to + VW,
        __builtin_shufflevector(low01, low23, (I / 2 % 2 * VW + VW / 2 + I / 4 * 2 + I % 2)...));
  store(to + 2 * VW,
        __builtin_shufflevector(high01, high23, (I / 2 % 2 * VW + I / 4 * 2 + I % 2)...));
  store(to + 3 * VW,
        __builtin_shufflevector(high01, high23, (I / 2 % 2 * VW + VW / 2 + I / 4 * 2 + I % 2)...));
}

// Elements [first, first + count) of a stream are written to `buffer`, which has room for
// count + kNormalSlack; returns where the first one is.
[[gnu::noinline]] const float* draw_normals(uint64_t seed, uint64_t offset, uint64_t first,
                                            int64_t count, float* buffer) {
  const auto skip = static_cast<int64_t>(first % 4);
  const int64_t groups = (skip + count + 3) / 4;
  for (int64_t g = 0; g < groups; g += VW) {
    const PhiloxVectors r = philox_groups(seed, offset, first / 4 + static_cast<uint64_t>(g));
    vf z[4];
    normal_pair(r.v[0], r.v[1], z[0], z[1]);
    normal_pair(r.v[2], r.v[3], z[2], z[3]);
    store_groups(z, buffer + 4 * g, std::make_integer_sequence<int, VW>{});
  }
  return buffer + skip;
}

}  // namespace
}  // namespace pixleap
