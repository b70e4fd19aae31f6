// The arithmetic of feature_covariance in pairs of float64: the same bits on CPUs and GPUs.
#pragma once

#include "core/rounded.h"
#include "ops/feature_moments/feature_moments.h"

namespace pixleap {

struct Double2 {  // high + low: 106 bits
  double high, low;
};

// high * 2^64 + low, rounded to nearest even.
PIXLEAP_HD static inline double nearest_double(uint64_t high, uint64_t low) {
  if (high == 0) return static_cast<double>(low);
#if defined(__CUDA_ARCH__)
  const int zeros = __clzll(static_cast<long long>(high));
#else
  const int zeros = __builtin_clzll(high);
#endif
  const uint64_t top = zeros ? high << zeros | low >> (64 - zeros) : high;
  // The last of 64 bits is below half a unit of 53: it tells whether anything follows.
  const uint64_t sticky = (low << zeros) != 0;
  return static_cast<double>(top | sticky) * static_cast<double>(uint64_t{1} << (63 - zeros)) * 2;
}

PIXLEAP_HD static inline Double2 from_fixed(const int64_t* cell) {
  uint64_t low = static_cast<uint64_t>(cell[0]), high = static_cast<uint64_t>(cell[1]);
  const bool negative = cell[1] < 0;
  if (negative) {  // the magnitude
    low = ~low + 1;
    high = ~high + (low == 0);
  }
  const double nearest = nearest_double(high, low);
  const auto upper = static_cast<uint64_t>(nearest * 0x1p-64);
  const auto lower = static_cast<uint64_t>(nearest - static_cast<double>(upper) * 0x1p64);
  const bool above = upper > high || (upper == high && lower > low);  // nearest > magnitude
  const uint64_t a = above ? lower : low, b = above ? low : lower;
  const uint64_t rest_high = (above ? upper - high : high - upper) - (a < b);
  const double rest = nearest_double(rest_high, a - b);
  const double unit = negative ? -0x1p-74 : 0x1p-74;
  static_assert(kFixedPoint == 74);
  return {unit * nearest, above ? -unit * rest : unit * rest};
}

PIXLEAP_HD static inline Double2 divide(Double2 a, double b) {
  const double q = a.high / b;
  return {q, add_rn(fma_rn(-q, b, a.high), a.low) / b};
}

PIXLEAP_HD static inline Double2 multiply(Double2 a, Double2 b) {
  const double p = mul_rn(a.high, b.high);
  const double mixed = add_rn(mul_rn(a.high, b.low), mul_rn(a.low, b.high));
  return {p, add_rn(fma_rn(a.high, b.high, -p), mixed)};
}

// a - b, rounded once.
PIXLEAP_HD static inline double difference(Double2 a, Double2 b) {
  const double t = a.high - b.high, z = t - a.high;
  const double rounded_off = (a.high - (t - z)) - (b.high + z);
  return t + (rounded_off + (a.low - b.low));
}

}  // namespace pixleap
