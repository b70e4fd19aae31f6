// mean[i] = first[i] / count, covariance[i, j] = (second[i, j] - first[i] first[j] / count) /
// (count - 1), from the integers of feature_moments.
#pragma once

#include "core/view.h"

namespace pixleap {

void feature_covariance(const Out& mean, const Out& covariance, const View& second,
                        const View& first, int64_t count);

}  // namespace pixleap
