// AVX-512 instructions for which a vector type has no operator, beside tiles: intrinsics, or, with
// PIXLEAP_EMULATE_ISA, the same by parts.
//   above_floor(x): x - floor(x); 0 for an infinity
//   times_power(y, x): y 2^floor(x)
//   upper_halves(low, high): of each lane, those of `low` below those of `high`
//   add_pairs(sum, pairs): sum plus the two bfloat16 numbers of each lane
#pragma once

#include "simd/vec.h"

namespace pixleap {
namespace {

#if !defined(PIXLEAP_EMULATE_ISA)

PIXLEAP_INLINE vf above_floor(vf x) {
  constexpr int kFloorQuietly = 0x09;
  return (vf)_mm512_maskz_reduce_ps(0xffff, (__m512)x, kFloorQuietly);
}
PIXLEAP_INLINE vf times_power(vf y, vf x) {
  return (vf)_mm512_maskz_scalef_ps(0xffff, (__m512)y, (__m512)x);
}
PIXLEAP_INLINE vu upper_halves(vu low, vu high) {
  return (vu)_mm512_mask_blend_epi16(0xaaaaaaaa, (__m512i)(low >> 16), (__m512i)high);
}
PIXLEAP_INLINE vf add_pairs(vf sum, vu pairs) {
  const vu ones = vu{} + 0x3f803f80u;
  return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pairs, (__m512bh)ones);
}

#else

PIXLEAP_INLINE vf above_floor(vf x) {
  for (int i = 0; i < VW; ++i) x[i] = __builtin_isinf(x[i]) ? 0.f : x[i] - __builtin_floorf(x[i]);
  return x;
}
PIXLEAP_INLINE vf times_power(vf y, vf x) {
  for (int i = 0; i < VW; ++i) {
    const float power = __builtin_floorf(x[i]);
    // Beyond these, every product is 0 or infinite.
    if (power == power)
      y[i] = __builtin_ldexpf(y[i], static_cast<int>(power < -400.f  ? -400.f
                                                     : power > 400.f ? 400.f
                                                                     : power));
    else
      y[i] = power;
  }
  return y;
}
PIXLEAP_INLINE vu upper_halves(vu low, vu high) { return low >> 16 | (high & 0xffff0000u); }
PIXLEAP_INLINE vf add_pairs(vf sum, vu pairs) {
  sum = sum + bit_cast_to<vf>(pairs & 0xffff0000u);
  return sum + bit_cast_to<vf>(pairs << 16);
}

#endif

}  // namespace
}  // namespace pixleap
