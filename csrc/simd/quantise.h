// Rows of numbers as int8 times one scale: symmetric, largest magnitude / 127, ties to even.
#pragma once

#include "simd/vec.h"

namespace pixleap {
namespace {

// The scale of a row, and in `divisor` what the row is divided by. A row of zeros has scale 0; one
// with NaN or infinity has scale NaN, so that what is computed with it is NaN, and divisor 0.
template <class T>
float row_scale(const T* w, int64_t k, float& divisor) {
  vf most{};
  vi bad{};
  for_each_vector(k, [&](int64_t i, int64_t n) {
    const vf v = vabs(load_upto(w + i, n));
    bad |= ~(v < splat(__builtin_inff()));
    most = vmax(most, v);
  });
  if (any(bad)) {
    divisor = 0.f;
    return __builtin_nanf("");
  }
  const float scale = reduce_max(most) / 127.f;
  divisor = scale > 0.f ? scale : 1.f;  // numbers that small round to 0
  return scale;
}

// Nearest integers of finite numbers up to 127 or so, ties to even.
PIXLEAP_INLINE vi round_to_int8(vf v) {
  const vf magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  v = vmin(vmax(v, splat(-127.f)), splat(127.f));
  return bit_cast_to<vi>(v + magic) - bit_cast_to<vi>(magic);
}

PIXLEAP_INLINE void round_lanes(vf v, int8_t* to) {
  typedef int8_t vb __attribute__((vector_size(VW)));
  const vb lanes = __builtin_convertvector(round_to_int8(v), vb);
  std::memcpy(to, &lanes, sizeof lanes);
}

// Writes a row and returns its scale; zeros where that is NaN.
template <class T>
float quantise_row(const T* in, int8_t* out, int64_t dim) {
  float divisor;
  const float scale = row_scale(in, dim, divisor);
  if (divisor == 0.f) {
    std::memset(out, 0, static_cast<size_t>(dim));
    return scale;
  }
  for_each_vector(dim, [&](int64_t d, int64_t lanes) {
    int8_t rounded[VW];
    round_lanes(load_upto(in + d, lanes) / splat(divisor), rounded);
    std::memcpy(out + d, rounded, static_cast<size_t>(lanes));
  });
  return scale;
}

}  // namespace
}  // namespace pixleap
