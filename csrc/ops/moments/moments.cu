#include "cuda/launch.h"
#include "ops/moments/moments.h"

namespace pixleap {
namespace {

constexpr int kThreads = 256;

// One block per sample; every thread strides over it in float64, then a tree in shared memory.
template <class T>
__global__ void __launch_bounds__(kThreads) moments_kernel(const MomentsParams p) {
  __shared__ double shared[kMoments][kThreads];
  for (int64_t sample = blockIdx.x; sample < p.batch; sample += gridDim.x) {
    const T* a = static_cast<const T*>(p.a) + sample * p.a_stride;
    const T* b = static_cast<const T*>(p.b) + sample * p.b_stride;
    double s[kMoments] = {};
    for (int64_t i = threadIdx.x; i < p.length; i += kThreads) {
      const double x = to_accumulate(a[i]), y = to_accumulate(b[i]), d = fabs(x - y);
      s[0] += x, s[1] += y, s[2] += x * x, s[3] += y * y, s[4] += x * y;
      if (d > s[5] || d != d) s[5] = d;
    }
    for (int k = 0; k < kMoments; ++k) shared[k][threadIdx.x] = s[k];
    __syncthreads();
    for (int step = kThreads / 2; step; step /= 2) {
      if (threadIdx.x < step) {
        for (int k = 0; k < 5; ++k) shared[k][threadIdx.x] += shared[k][threadIdx.x + step];
        const double d = shared[5][threadIdx.x + step];
        if (d > shared[5][threadIdx.x] || d != d) shared[5][threadIdx.x] = d;
      }
      __syncthreads();
    }
    if (threadIdx.x < kMoments) p.out[sample * kMoments + threadIdx.x] = shared[threadIdx.x][0];
    __syncthreads();
  }
}

}  // namespace

void moments_cuda(const MomentsParams& p, const Device& device) {
  with_cuda_type(p.dtype, [&]<class T>() {
    launch(moments_kernel<T>, grid_for(p.batch, 1), kThreads, device, p);
  });
}

}  // namespace pixleap
