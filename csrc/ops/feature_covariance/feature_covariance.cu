#include "cuda/launch.h"
#include "cuda/triangle.h"
#include "ops/feature_covariance/double2.h"
#include "ops/feature_covariance/feature_covariance.h"

namespace pixleap {
namespace {

constexpr int kThreads = 256, kTile = 32;

// One block per tile of the lower triangle; what mirrors it goes through shared memory, so that
// both are written by rows.
__global__ void __launch_bounds__(kThreads)
    feature_covariance_kernel(const FeatureCovarianceParams p) {
  __shared__ Double2 row_means[kTile], column_sums[kTile];
  __shared__ bool row_spoiled[kTile];
  __shared__ double mirror[kTile][kTile + 1];
  const TrianglePlace tile = triangle_place(blockIdx.x);
  const int64_t first_row = tile.row * kTile, first_column = tile.column * kTile;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kTile;
  if (thread < kTile && first_row + thread < p.d) {
    const int64_t i = first_row + thread;
    const Double2 m = divide(from_fixed(p.first + 2 * i), p.count);
    row_means[thread] = m;
    row_spoiled[thread] = spoiled(p.second + i * (i + 3));
    if (tile.row == tile.column) p.mean[i] = row_spoiled[thread] ? nan("") : m.high + m.low;
  }
  if (thread >= kTile && thread < 2 * kTile && first_column + lane < p.d)
    column_sums[lane] = from_fixed(p.first + 2 * (first_column + lane));
  __syncthreads();
  for (int r = thread / kTile; r < kTile; r += kThreads / kTile) {
    const int64_t i = first_row + r, j = first_column + lane;
    if (i >= p.d || j > i) continue;
    const Double2 product = multiply(row_means[r], column_sums[lane]);
    const Double2 total = from_fixed(p.second + i * (i + 1) + 2 * j);
    const double c = row_spoiled[r] ? nan("") : difference(total, product) / (p.count - 1);
    p.covariance[i * p.d + j] = c;
    mirror[r][lane] = c;
  }
  __syncthreads();
  for (int r = thread / kTile; r < kTile; r += kThreads / kTile) {
    const int64_t i = first_column + r, j = first_row + lane;
    if (j < p.d && i < j) p.covariance[i * p.d + j] = mirror[lane][r];
  }
}

}  // namespace

void feature_covariance_cuda(const FeatureCovarianceParams& p, const Device& device) {
  const int64_t side = (p.d + kTile - 1) / kTile;
  launch(feature_covariance_kernel, static_cast<unsigned>(side * (side + 1) / 2), kThreads, device,
         p);
}

}  // namespace pixleap
