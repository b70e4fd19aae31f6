#include "cuda/launch.h"
#include "ops/gaussian_accept/gaussian_accept.h"
#include "ops/gaussian_accept/position.h"

namespace pixleap {
namespace {

// One thread per position: tokens have 4 to 64 channels. A position that the CPU refuses gets NaN.
__global__ void __launch_bounds__(128) gaussian_accept_kernel(const GaussianAcceptParams p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < p.batch * p.length; i += step) {
    if (run_position(p, i) == GaussianFault::none) continue;
    const GaussianPosition at = gaussian_position(p, i);
    for (int64_t d = 0; d < p.channels; ++d) at.out[d] = nanf("");
    p.accepted[i] = false;
  }
}

}  // namespace

void gaussian_accept_cuda(const GaussianAcceptParams& p, const Device& device) {
  launch(gaussian_accept_kernel, grid_for(p.batch * p.length, 128), 128, device, p);
}

}  // namespace pixleap
