#include "core/philox.h"
#include "cuda/launch.h"
#include "ops/random_normal/random_normal.h"

namespace pixleap {
namespace {

template <class T>
__global__ void __launch_bounds__(256) random_normal_kernel(const RandomNormalParams p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.count;
       i += step)
    from_accumulate(philox_normal(p.seed, p.offset, p.first_element + static_cast<uint64_t>(i)),
                    static_cast<T*>(p.out)[i]);
}

}  // namespace

void random_normal_cuda(const RandomNormalParams& p, const Device& device) {
  with_cuda_type(p.dtype, [&]<class T>() {
    launch(random_normal_kernel<T>, grid_for(p.count, 256), 256, device, p);
  });
}

}  // namespace pixleap
