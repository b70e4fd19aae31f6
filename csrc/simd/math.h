// Vector exp, log, sigmoid, erf and the activations made of them. Errors are against float64 over
// the range a float can hold, measured by tests/native (about 2 ulp unless said).
#pragma once

#include "simd/vec.h"

namespace pixleap {
namespace {

// (exp(r) - 1 - r) / r^2 for |r| < 0.3466.
PIXLEAP_INLINE vf exp_tail(vf r) {
  vf p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  return p;
}

// exp(x): 0 below -87.34 (no subnormal results), inf above 88.72, NaN for NaN.
PIXLEAP_INLINE vf vexp(vf x) {
  const vf clamped = vmin(vmax(x, splat(-88.f)), splat(89.f));
  const vf magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  const vf shifted = fma(clamped, splat(1.44269504f), magic);
  const vf n = shifted - magic;
  vf r = fma(n, splat(-0.693359375f), clamped);
  r = fma(n, splat(2.12194440e-4f), r);
  const vf p = fma(exp_tail(r), r * r, r) + 1.f;
  // 2^n in two factors, so that n = 128 does not overflow before the product does.
  const vi i = bit_cast_to<vi>(shifted) - bit_cast_to<vi>(magic);
  const vi half = i >> 1;
  const vf a = bit_cast_to<vf>((half + 127) << 23), b = bit_cast_to<vf>((i - half + 127) << 23);
  vf y = p * a * b;
  y = select(x < splat(-87.33654f), vf{}, y);
  y = select(x > splat(88.72283f), splat(__builtin_inff()), y);
  return select(x != x, x, y);
}

// exp(x) for x <= 0 (and a little above), with the bits of vexp at half its operations: nothing
// overflows, one factor 2^n is enough, and what comes below -87.34 is masked rather than avoided.
PIXLEAP_INLINE vf vexp_nonpositive(vf x) {
  const vf magic = splat(12582912.f);
  const vf shifted = fma(x, splat(1.44269504f), magic);
  const vf n = shifted - magic;
  vf r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  const vf p = fma(exp_tail(r), r * r, r) + 1.f;
  const vu power = (bit_cast_to<vu>(shifted) - (0x4b400000u - 127u)) << 23;
  const vu y = bit_cast_to<vu>(p * bit_cast_to<vf>(power));
  return bit_cast_to<vf>(y & ~bit_cast_to<vu>(x < splat(-87.33654f)));
}

// exp(x) - 1, to 2 ulp of the result below |x| = 0.3466, to 1.5e-7 of the larger term above.
PIXLEAP_INLINE vf vexpm1(vf x) {
  const vf small = fma(exp_tail(x), x * x, x);
  return select(vabs(x) < splat(0.3466f), small, vexp(x) - 1.f);
}

// log(x) for normal positive x; -inf for 0, NaN below 0.
PIXLEAP_INLINE vf vlog(vf x) {
  const vi bits = bit_cast_to<vi>(x);
  vi e = ((bits >> 23) & 0xff) - 126;
  vf m = bit_cast_to<vf>((bits & 0x007fffff) | 0x3f000000);  // [0.5, 1)
  const vi low = m < splat(0.70710678f);
  e += low;  // -1 where low
  m = select(low, m + m, m) - 1.f;
  const vf z = m * m;
  vf p = splat(7.0376836292e-2f);
  p = fma(p, m, splat(-1.1514610310e-1f));
  p = fma(p, m, splat(1.1676998740e-1f));
  p = fma(p, m, splat(-1.2420140846e-1f));
  p = fma(p, m, splat(1.4249322787e-1f));
  p = fma(p, m, splat(-1.6668057665e-1f));
  p = fma(p, m, splat(2.0000714765e-1f));
  p = fma(p, m, splat(-2.4999993993e-1f));
  p = fma(p, m, splat(3.3333331174e-1f));
  const vf n = __builtin_convertvector(e, vf);
  vf y = m * z * p;
  y = fma(n, splat(-2.12194440e-4f), y);
  y = fma(z, splat(-0.5f), y);
  y = m + y;
  y = fma(n, splat(0.693359375f), y);
  y = select(x == vf{}, splat(-__builtin_inff()), y);
  y = select(x < vf{}, splat(__builtin_nanf("")), y);
  y = select(x == splat(__builtin_inff()), x, y);
  return select(x != x, x, y);
}

// By exp(-|x|), which cannot overflow.
PIXLEAP_INLINE vf vsigmoid(vf x) {
  const vf e = vexp_nonpositive(bit_cast_to<vf>(bit_cast_to<vu>(x) | 0x80000000u));
  return select(x < vf{}, e, splat(1.f)) / (1.f + e);
}

// Abramowitz and Stegun 7.1.26, absolute error 1.5e-7.
PIXLEAP_INLINE vf verf(vf x) {
  const vf a = vabs(x);
  const vf t = 1.f / fma(a, splat(0.3275911f), splat(1.f));
  vf p = splat(1.061405429f);
  p = fma(p, t, splat(-1.453152027f));
  p = fma(p, t, splat(1.421413741f));
  p = fma(p, t, splat(-0.284496736f));
  p = fma(p, t, splat(0.254829592f));
  const vf y = 1.f - p * t * vexp_nonpositive(-a * a);
  const vu sign = bit_cast_to<vu>(x) & 0x80000000u;
  return bit_cast_to<vf>(bit_cast_to<vu>(y) | sign);
}

PIXLEAP_INLINE vf silu(vf x) { return x * vsigmoid(x); }
PIXLEAP_INLINE vf gelu(vf x) { return 0.5f * x * (1.f + verf(x * 0.70710678f)); }
PIXLEAP_INLINE vf gelu_tanh(vf x) {
  // 0.5 (1 + tanh(u)) = sigmoid(2 u)
  return x * vsigmoid(1.59576912f * fma(x * x * x, splat(0.044715f), x));
}

}  // namespace
}  // namespace pixleap
