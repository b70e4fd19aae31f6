// Adding pairs of float64 numbers to 128-bit integers in units of 2^-74, by vectors. Only IEEE
// additions and integer operations, no FMA: the same bits on every ISA.
#pragma once

#include <utility>

#include "ops/feature_moments/feature_moments.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

constexpr int VD = VW / 2;
typedef double vd __attribute__((vector_size(VW * 4)));
typedef uint64_t vul __attribute__((vector_size(VW * 4)));
typedef float vf_half __attribute__((vector_size(VW * 2)));

struct Two {  // high + low
  vd high, low;
};
PIXLEAP_INLINE Two two_sum(vd a, vd b) {
  const vd s = a + b, t = s - a;
  return {s, (a - (s - t)) + (b - t)};
}

PIXLEAP_INLINE vd load_double(const double* p) {
  vd v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
PIXLEAP_INLINE vd load_double(const float* p) {
  vf_half v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, vd);
}

// The number of units nearest to x, plus `offset`, and x without them; |x| < 2^51 units.
PIXLEAP_INLINE vul take_units(vd& x, double unit, uint64_t offset) {
  // Adding 1.5 2^52 units leaves their number in the low bits of the mantissa.
  const vd magic = unit * 0x1.8p52 - vd{}, sum = x + magic;
  x -= sum - magic;
  return bit_cast_to<vul>(sum) - bit_cast_to<vul>(magic) + offset;
}
// -1 where a < b.
PIXLEAP_INLINE vul less(vul a, vul b) { return bit_cast_to<vul>(a < b); }

struct Integers {  // of 128 bits
  vul low, high;
};

// v += x in units of 2^-74; |x| < 2^53.
PIXLEAP_INLINE void add_fixed(Integers& v, Two x) {
  static_assert(kFixedPoint == 74);
  x = two_sum(x.high, x.low);
  const vul top = take_units(x.high, 0x1p10, 0);
  // The upper digits are gone: there is room for those of low, which are below all of high's.
  const vd sum = x.high + x.low;
  x = {sum, x.low - (sum - x.high)};
  // 2^44 units more in `bottom` than there are make it positive, and 4 less in `middle` (of 2^42
  // units each) make that good.
  const vul middle = take_units(x.high, 0x1p-32, uint64_t{0} - 4);
  vd rest = x.high + x.low;
  const vul bottom = take_units(rest, 0x1p-74, uint64_t{1} << 44);
  const vul low = (middle << 42) + bottom;
  // Arithmetic shift by 22: as unsigned, with 2^62 added for the time being.
  const vul high = (top << 20) + ((middle + (uint64_t{1} << 62)) >> 22) - (uint64_t{1} << 40);
  v.low += low;
  v.high += high - less(low, bottom) - less(v.low, low);
}

// Integer k of `cells` is the pair (2 k, 2 k + 1) of low and high half.
template <int... I>
PIXLEAP_INLINE Integers load_integers(const int64_t* cells, std::integer_sequence<int, I...>) {
  vul a, b;
  std::memcpy(&a, cells, sizeof a);
  std::memcpy(&b, cells + VD, sizeof b);
  return {__builtin_shufflevector(a, b, 2 * I...), __builtin_shufflevector(a, b, 2 * I + 1 ...)};
}
template <int... I>
PIXLEAP_INLINE void store_integers(int64_t* cells, const Integers& v,
                                   std::integer_sequence<int, I...>) {
  const vul a = __builtin_shufflevector(v.low, v.high, I % 2 * VD + I / 2 ...);
  const vul b = __builtin_shufflevector(v.low, v.high, I % 2 * VD + I / 2 + VD / 2 ...);
  std::memcpy(cells, &a, sizeof a);
  std::memcpy(cells + VD, &b, sizeof b);
}

// Integer j of `cells` += value(j, x[j..]) for j < n. x, and what value reads, can be read up to a
// whole vector past n.
template <class Value>
PIXLEAP_INLINE void add_row(int64_t n, const double* x, int64_t* cells, Value&& value) {
  constexpr std::make_integer_sequence<int, VD> lanes;
  int64_t j = 0;
  for (; j + VD <= n; j += VD) {
    Integers v = load_integers(cells + 2 * j, lanes);
    add_fixed(v, value(j, load_double(x + j)));
    store_integers(cells + 2 * j, v, lanes);
  }
  if (j == n) return;
  int64_t tail[2 * VD] = {};
  const auto bytes = static_cast<size_t>(n - j) * 16;
  std::memcpy(tail, cells + 2 * j, bytes);
  Integers v = load_integers(tail, lanes);
  add_fixed(v, value(j, load_double(x + j)));
  store_integers(tail, v, lanes);
  std::memcpy(cells + 2 * j, tail, bytes);
}

}  // namespace
}  // namespace pixleap
