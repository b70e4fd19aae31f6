// Weights per sample of the arrays that a guidance rule combines, from their sums in one pass:
//   rescale:    of (cond, uncond)
//   projected:  of (cond, uncond), or with a running difference r = cond - uncond + momentum * r
//               of (r, cond) or (r, cond, uncond)
#pragma once

#include <cmath>
#include <span>
#include <string_view>

#include "core/dispatch.h"
#include "core/philox.h"  // PIXLEAP_HD
#include "core/sample_sums.h"

namespace pixleap {

struct GuidanceWeightsParams {
  DType dtype;
  SampleSums size;
  const void *cond, *uncond, *average;  // (B, length), stride 1 along length; uncond may be null
  void* difference;                     // r, as average; null: none is kept
  int64_t cond_stride, uncond_stride, average_stride, difference_stride;  // between samples
  double* out;                                                            // (B, count)
  int32_t count;
  bool rescale, from_cond;
  double scale;
  const double* sample_scale;  // (B,), stride 1, or null
  double phi, eta, norm_threshold, momentum, slope;
  double* sums;     // (B, 6) on the CPU
  double* partial;  // (B, chunks, 6) on the CPU, if there is more than one chunk
};

void guidance_weights(std::span<const Out> out, const View& cond, const Optional& uncond,
                      const Optional& average, double scale, const Optional& sample_scale,
                      std::string_view rule, double phi, double eta, double norm_threshold,
                      double momentum, std::string_view base, double slope);

PIXLEAP_DECLARE_KERNELS(guidance_weights, GuidanceWeightsParams)

// Both keep a NaN. Below kGuidanceTiny, the square of 1e-12, a norm counts as zero.
constexpr double kGuidanceTiny = 1e-24;
PIXLEAP_HD static inline double guidance_at_least(double x, double limit) {
  return x < limit ? limit : x;
}
PIXLEAP_HD static inline double guidance_at_most(double x, double limit) {
  return x > limit ? limit : x;
}

// The weights of a sample from its sums a, b, a a, b b, a b, where (a, b) is (cond, uncond) or
// (r, cond).
PIXLEAP_HD static inline void guidance_rule(const GuidanceWeightsParams& p, const double* s,
                                            double scale, double* w) {
  if (p.rescale) {
    const double n = static_cast<double>(p.size.length), u = 1.0 - scale;
    const double vc = s[2] - s[0] * s[0] / n, vu = s[3] - s[1] * s[1] / n;
    const double cov = s[4] - s[0] * s[1] / n;
    const double guided =
        guidance_at_least(scale * scale * vc + u * u * vu + 2.0 * scale * u * cov, kGuidanceTiny);
    const double factor = p.phi * std::sqrt(guidance_at_least(vc, 0.0) / guided) + (1.0 - p.phi);
    w[0] = factor * scale;
    w[1] = factor * u;
    return;
  }
  // r limited to the norm threshold, its component k * along scaled by eta.
  const double rr = p.difference ? s[2] : s[2] - 2.0 * s[4] + s[3];
  const double along = p.difference ? s[3] : s[2];
  const double k = (p.difference ? s[4] : s[2] - s[4]) / guidance_at_least(along, kGuidanceTiny);
  double a = p.from_cond ? scale - 1.0 : scale;
  if (p.norm_threshold != 0) {
    const double norm = guidance_at_least(std::sqrt(guidance_at_least(rr, 0.0)), kGuidanceTiny);
    a *= guidance_at_most(p.norm_threshold / norm, 1.0);
  }
  const double b = a * ((1.0 - p.eta) * k);
  if (!p.difference) {
    w[0] = p.from_cond ? 1.0 + a - b : a - b;
    w[1] = p.from_cond ? -a : 1.0 - a;
  } else if (p.count == 2) {
    w[0] = a;
    w[1] = 1.0 - b;
  } else {
    w[0] = a / p.slope;
    w[1] = -b / p.slope;
    w[2] = 1.0;
  }
}

}  // namespace pixleap
