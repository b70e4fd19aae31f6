// Dynamic thresholding, per sample: s = clamp(quantile(|x|, ratio), min, max),
//   out = clamp(x, -s, s) / s
#pragma once

#include "core/dispatch.h"
#include "core/philox.h"  // PIXLEAP_HD

namespace pixleap {

struct DynamicThresholdParams {
  DType dtype;
  const void* x;                 // (B, length), stride 1 along length
  void* out;                     // as x; may be x
  float* scale;                  // (B,), s
  int64_t batch, length;         // length: product of the other extents, at least 1
  int64_t x_stride, out_stride;  // between samples, in elements
  int64_t rank;                  // the quantile lies `fraction` of the way from the order
  double fraction;               // statistic `rank` to the next one
  float min_value, max_value;
};

void dynamic_threshold(const Out& out, const Out& scale, const View& x, double ratio,
                       double max_value, double min_value);

PIXLEAP_DECLARE_KERNELS(dynamic_threshold, DynamicThresholdParams)

// Here and not in the kernels, because the standard library's algorithms leave weak symbols.
// Sorts just so far that values[k] is where it would be; the larger ones follow it.
void dynamic_threshold_select(float* values, int64_t n, int64_t k);

// s from the order statistics `rank` and `rank` + 1, NaN from a NaN.
PIXLEAP_HD static inline float dynamic_threshold_scale(const DynamicThresholdParams& p, float low,
                                                       float high) {
  const double gap = static_cast<double>(high) - static_cast<double>(low);
  const double q =
      static_cast<double>(low) + (p.fraction == 0 || low == high ? 0.0 : p.fraction * gap);
  const float s = static_cast<float>(q);
  return s < p.min_value ? p.min_value : s > p.max_value ? p.max_value : s;
}

}  // namespace pixleap
