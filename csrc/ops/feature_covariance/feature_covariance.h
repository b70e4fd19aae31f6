// mean[i] = first[i] / count, covariance[i, j] = (second[i, j] - first[i] first[j] / count) /
// (count - 1), from the integers of feature_moments.
#pragma once

#include "core/dispatch.h"

namespace pixleap {

struct FeatureCovarianceParams {
  const int64_t *second, *first;  // (d (d + 1) / 2, 2), (d, 2): low and high half
  double *mean, *covariance;      // (d,), (d, d)
  int64_t d;
  double count;
};

void feature_covariance(const Out& mean, const Out& covariance, const View& second,
                        const View& first, int64_t count);

void feature_covariance_cuda(const FeatureCovarianceParams&, const Device&);

}  // namespace pixleap
