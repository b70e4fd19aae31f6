// One number at a time of ops/feature_moments/fixed_point.inl: pairs of float64 added to 128-bit
// integers in units of 2^-74, with the bits of the CPU.
#pragma once

#include "core/rounded.h"
#include "cuda/launch.h"
#include "ops/feature_moments/feature_moments.h"

namespace pixleap {

struct Two {  // high + low
  double high, low;
};

__device__ inline Two two_sum(double a, double b) {
  const double s = add_rn(a, b), t = add_rn(s, -a);
  return {s, add_rn(add_rn(a, -add_rn(s, -t)), add_rn(b, -t))};
}

// The number of units nearest to x, and x without them; |x| < 2^51 units.
__device__ inline uint64_t take_units(double& x, double unit) {
  // Adding 1.5 2^52 units leaves their number in the low bits of the mantissa.
  const double magic = unit * 0x1.8p52, sum = add_rn(x, magic);
  x = add_rn(x, -add_rn(sum, -magic));
  return static_cast<uint64_t>(__double_as_longlong(sum)) -
         static_cast<uint64_t>(__double_as_longlong(magic));
}

// cell (low and high half) += x in units of 2^-74; |x| < 2^53.
__device__ inline void add_fixed(int64_t* cell, Two x) {
  static_assert(kFixedPoint == 74);
  x = two_sum(x.high, x.low);
  const uint64_t top = take_units(x.high, 0x1p10);
  const double sum = add_rn(x.high, x.low);
  const double low_part = add_rn(x.low, -add_rn(sum, -x.high));
  double rest = sum;
  const uint64_t middle = take_units(rest, 0x1p-32);
  rest = add_rn(rest, low_part);
  const uint64_t bottom = take_units(rest, 0x1p-74);
  // top 2^84 + middle 2^42 + bottom; the last two may be negative.
  const auto sign = [](uint64_t v) { return v >> 63 ? ~uint64_t{0} : uint64_t{0}; };
  uint64_t low = middle << 42;
  uint64_t high = (top << 20) + static_cast<uint64_t>(static_cast<int64_t>(middle) >> 22);
  low += bottom;
  high += sign(bottom) + (low < bottom);
  const uint64_t total = static_cast<uint64_t>(cell[0]) + low;
  cell[1] = static_cast<int64_t>(static_cast<uint64_t>(cell[1]) + high + (total < low));
  cell[0] = static_cast<int64_t>(total);
}

}  // namespace pixleap
