// Which points of one set lie inside balls around the points of the other, counted per point:
//   x_counts[i, 0] = #{j: |x_i - y_j|^2 < x_radii[i]}    points of y in the ball of x_i
//   x_counts[i, 1] = #{j: |x_i - y_j|^2 < y_radii[j]}    balls of y that hold x_i
// and y_counts the same seen from y.
#pragma once

#include "core/dispatch.h"
#include "core/pairwise.h"

namespace pixleap {

struct PairwiseCountParams {
  PairwiseSets sets;
  const double *x_radii, *y_radii;  // (N,), (M,) squared radii, contiguous
  float *x_scaled, *y_scaled;       // (N,), (M,) CPU scratch: in the units of the products
  int64_t *x_counts, *y_counts;     // (N, 2), (M, 2) contiguous
};

void pairwise_count(const Out& x_counts, const Out& y_counts, std::span<const Out> workspace,
                    const View& x, const View& y, const View& x_radii, const View& y_radii);

PIXLEAP_DECLARE_KERNELS(pairwise_count, PairwiseCountParams)

}  // namespace pixleap
