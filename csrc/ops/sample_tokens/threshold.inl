// Which values of a row the filters keep: selection without a sort (README.md).
#pragma once

#include <cstring>

#include "simd/compress.h"
#include "simd/vec.h"

namespace pixleap {
namespace {

constexpr int64_t kPad = 2 * VW;  // NaN after the last value: every comparison with it is false
constexpr int64_t kSortBelow = 32;
const float kInf = __builtin_inff();

PIXLEAP_INLINE void pad(float* x, int64_t n) {
  for (int64_t i = 0; i < kPad; ++i) x[n + i] = __builtin_nanf("");
}

struct Range {
  float low, high;     // of the values above -inf
  int64_t impossible;  // values that are -inf (or NaN)
};

// Weight of the values in (low, high]; the weight of a value is w, or 1 without Weighted. For a
// fixed `low` it never falls when `high` rises, because rounded sums of a fixed order are monotone.
template <bool Weighted>
double weight_within(const float* x, const float* w, int64_t n, float low, float high) {
  const vf above = splat(low), upto = splat(high);
  double total = 0;
  constexpr int64_t kBlock = 64 * VW;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = begin + kBlock < n ? begin + kBlock : n;
    vf sum0{}, sum1{};
    vi count0{}, count1{};
    for (int64_t i = begin; i < end; i += 2 * VW) {
      const vf a = load(x + i), b = load(x + i + VW);
      const vi in_a = (a > above) & (a <= upto), in_b = (b > above) & (b <= upto);
      if constexpr (Weighted) {
        sum0 += bit_cast_to<vf>(in_a & bit_cast_to<vi>(load(w + i)));
        sum1 += bit_cast_to<vf>(in_b & bit_cast_to<vi>(load(w + i + VW)));
      } else {
        count0 -= in_a;
        count1 -= in_b;
      }
    }
    if constexpr (Weighted)
      total += static_cast<double>(reduce_add(sum0 + sum1));
    else
      total += static_cast<double>(reduce_add(__builtin_convertvector(count0 + count1, vf)));
  }
  return total;
}

// Order-preserving integer image of a float, and back.
PIXLEAP_INLINE int64_t order_of(float x) {
  const auto bits = bit_cast_to<int32_t>(x);
  return bits < 0 ? INT32_MIN - static_cast<int64_t>(bits) : bits;
}
PIXLEAP_INLINE float float_of(int64_t order) {
  return bit_cast_to<float>(static_cast<int32_t>(order < 0 ? INT32_MIN - order : order));
}

// A value in [low, high). Halves the interval of values, later of representable numbers, so that
// the number of rounds is bounded for any distribution.
PIXLEAP_INLINE float pivot_of(float low, float high, int round) {
  float pivot = round < 24 ? 0.5f * low + 0.5f * high
                           : float_of(order_of(low) + (order_of(high) - order_of(low)) / 2);
  return pivot >= low && pivot < high ? pivot : low;
}

struct Threshold {
  float value;   // the least value with (weight of all values <= value) > limit
  double below;  // weight of the values < value
};

// Selection by bisection: each round counts what lies below three pivots, then keeps only the
// candidates between the nearest two.
template <bool Weighted>
Threshold find_threshold(const float* x, const float* w, int64_t n, Range range, double below,
                         double limit, float* cx, float* cw) {
  float low = -kInf, smallest = range.low, largest = range.high;
  for (int round = 0; smallest < largest && n > kSortBelow;) {
    float first = smallest, last = largest;  // the answer is in (low, last]
    for (int i = 0; i < 3 && first < last; ++i, ++round) {
      const float pivot = pivot_of(first, last, round);
      const double upto = below + weight_within<Weighted>(x, w, n, low, pivot);
      if (upto > limit) {
        last = pivot;
      } else {
        below = upto;
        low = first = pivot;
      }
    }
    int64_t kept = 0;
    vf least = splat(kInf), greatest = splat(-kInf);
    const vf above = splat(low), upto = splat(last);
    for (int64_t i = 0; i < n; i += VW) {
      const vf v = load(x + i);
      const vi inside = (v > above) & (v <= upto);
      least = vmin(least, select(inside, v, least));
      greatest = vmax(greatest, select(inside, v, greatest));
      const uint32_t bits = lane_bits(inside);
      compress(v, bits, cx + kept);  // never beyond what was read: x may be cx
      if constexpr (Weighted) compress(load(w + i), bits, cw + kept);
      kept += __builtin_popcount(bits);
    }
    n = kept, smallest = -reduce_max(-least), largest = reduce_max(greatest);
    pad(cx, n);
    x = cx, w = cw;
  }
  if (!(smallest < largest)) return {largest, below};
  // Few candidates: sort them (insertion), then walk upwards over groups of equal values.
  float sx[kSortBelow], sw[kSortBelow];
  int64_t m = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!(x[i] > low && x[i] <= largest)) continue;
    int64_t j = m++;
    for (; j > 0 && sx[j - 1] > x[i]; --j) sx[j] = sx[j - 1], sw[j] = sw[j - 1];
    sx[j] = x[i], sw[j] = Weighted ? w[i] : 1.f;
  }
  for (int64_t i = 0; i < m;) {
    double upto = below;
    int64_t j = i;
    for (; j < m && sx[j] == sx[i]; ++j) upto += static_cast<double>(sw[j]);
    if (upto > limit || j == m) return {sx[i], below};
    below = upto;
    i = j;
  }
  return {largest, below};
}

// Moves the values that are >= value to the front, except the first `skip` of those equal to it.
template <bool HasIds>
int64_t keep_from(float* x, int32_t* ids, int64_t n, float value, int64_t skip) {
  int64_t kept = 0, i = 0;
  for (; skip > 0 && i < n; ++i) {
    const float v = x[i];
    const bool tie = v == value;
    x[kept] = v;
    ids[kept] = HasIds ? ids[i] : static_cast<int32_t>(i);
    kept += v > value;
    skip -= tie;
  }
  vi id;
  for (int lane = 0; lane < VW; ++lane) id[lane] = static_cast<int32_t>(i) + lane;
  for (; i < n; i += VW, id += VW) {
    const vf v = load(x + i);
    const uint32_t bits = lane_bits(v >= splat(value));
    if constexpr (HasIds) std::memcpy(&id, ids + i, sizeof id);
    compress(v, bits, x + kept);
    compress(bit_cast_to<vf>(id), bits, reinterpret_cast<float*>(ids) + kept);
    kept += __builtin_popcount(bits);
  }
  pad(x, kept);
  return kept;
}

}  // namespace
}  // namespace pixleap
