// The terms of bicubic interpolation and one axis of a 3-tap convolution, for CPUs and GPUs.
#pragma once

#include "core/philox.h"  // PIXLEAP_HD
#include "ops/next_scale_update/next_scale_update.h"

namespace pixleap {

PIXLEAP_HD static inline void add_term(UpsampleTerms& t, int tap, int64_t at, double weight) {
  for (int i = 0; i < t.count; ++i)
    if (t.term[i].tap == tap && t.term[i].at == at) {
      t.term[i].weight += static_cast<float>(weight);  // taps clamped to the border
      return;
    }
  t.term[t.count++] = {tap, static_cast<int32_t>(at), static_cast<float>(weight)};
}

// Keys' cubic convolution kernel with A = -0.75 at distance d from the sample.
PIXLEAP_HD static inline double cubic(double d) {
  constexpr double a = -0.75;
  d = d < 0 ? -d : d;
  if (d <= 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
  if (d < 2) return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a;
  return 0;
}

// Of output coordinate y of `height`, from `side` source coordinates.
PIXLEAP_HD static inline void make_terms(int64_t height, int64_t side, int64_t y,
                                         UpsampleTerms& t) {
  t.count = 0;
  for (int tap = 0; tap < 3; ++tap) {
    const int64_t up = y + tap - 1;
    if (up < 0 || up >= height) continue;
    if (side == height) {
      add_term(t, tap, up, 1);
      continue;
    }
    const double position =
        (static_cast<double>(up) + 0.5) * static_cast<double>(side) / static_cast<double>(height) -
        0.5;
    auto base = static_cast<int64_t>(position);
    if (static_cast<double>(base) > position) --base;  // floor
    for (int j = -1; j <= 2; ++j) {
      const int64_t at = base + j;
      add_term(t, tap,
               at < 0       ? 0
               : at >= side ? side - 1
                            : at,
               cubic(position - static_cast<double>(at)));
    }
  }
}

}  // namespace pixleap
