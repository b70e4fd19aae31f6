#include "cuda/moments.h"
#include "ops/moments/moments.h"

namespace pixleap {
namespace {

template <class T>
__global__ void __launch_bounds__(kMomentsThreads) moments_kernel(const MomentsParams p) {
  __shared__ double shared[kMoments][kMomentsThreads];
  for (int64_t sample = blockIdx.x; sample < p.size.batch; sample += gridDim.x) {
    const T* a = static_cast<const T*>(p.a) + sample * p.a_stride;
    const T* b = static_cast<const T*>(p.b) + sample * p.b_stride;
    block_moments(p.size.length, shared, [&](int64_t i, double& x, double& y) {
      x = to_accumulate(a[i]), y = to_accumulate(b[i]);
    });
    if (threadIdx.x < kMoments) p.out[sample * kMoments + threadIdx.x] = shared[threadIdx.x][0];
    __syncthreads();
  }
}

}  // namespace

void moments_cuda(const MomentsParams& p, const Device& device) {
  with_cuda_type(p.dtype, [&]<class T>() {
    launch(moments_kernel<T>, grid_for(p.size.batch, 1), kMomentsThreads, device, p);
  });
}

}  // namespace pixleap
