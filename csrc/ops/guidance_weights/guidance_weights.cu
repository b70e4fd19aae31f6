#include "cuda/moments.h"
#include "ops/guidance_weights/guidance_weights.h"

namespace pixleap {
namespace {

template <class T>
__global__ void __launch_bounds__(kMomentsThreads)
    guidance_weights_kernel(const GuidanceWeightsParams p) {
  __shared__ double shared[kMoments][kMomentsThreads];
  for (int64_t sample = blockIdx.x; sample < p.size.batch; sample += gridDim.x) {
    const T* cond = static_cast<const T*>(p.cond) + sample * p.cond_stride;
    const T* uncond = static_cast<const T*>(p.uncond) + sample * p.uncond_stride;
    const T* average = static_cast<const T*>(p.average) + sample * p.average_stride;
    T* difference = static_cast<T*>(p.difference) + sample * p.difference_stride;
    const auto momentum = static_cast<float>(p.momentum);
    block_moments(p.size.length, shared, [&](int64_t i, double& x, double& y) {
      const float c = to_accumulate(cond[i]);
      if (!p.difference) {
        x = c, y = to_accumulate(uncond[i]);
        return;
      }
      y = c;
      if (p.uncond) {
        float r = c - to_accumulate(uncond[i]);
        if (momentum != 0) r = fmaf(momentum, to_accumulate(average[i]), r);
        T rounded;
        from_accumulate(r, rounded);
        difference[i] = rounded;
        x = to_accumulate(rounded);
      } else {
        x = to_accumulate(average[i]);
      }
    });
    if (threadIdx.x == 0) {
      double s[kMoments];
      for (int k = 0; k < kMoments; ++k) s[k] = shared[k][0];
      guidance_rule(p, s, p.sample_scale ? p.sample_scale[sample] : p.scale,
                    p.out + sample * p.count);
    }
    __syncthreads();
  }
}

}  // namespace

void guidance_weights_cuda(const GuidanceWeightsParams& p, const Device& device) {
  const auto run = [&]<class T>() {
    launch(guidance_weights_kernel<T>, grid_for(p.size.batch, 1), kMomentsThreads, device, p);
  };
  switch (p.dtype) {
    case DType::f32:
      return run.template operator()<float>();
    case DType::bf16:
      return run.template operator()<__nv_bfloat16>();
    default:
      return run.template operator()<__half>();
  }
}

}  // namespace pixleap
