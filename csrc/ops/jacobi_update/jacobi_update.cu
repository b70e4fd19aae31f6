#include "cuda/launch.h"
#include "ops/jacobi_update/jacobi_update.h"

namespace pixleap {
namespace {

template <class T>
__device__ T* token(const JacobiOperand& o, int64_t batch, int64_t w) {
  return o.data ? static_cast<T*>(o.data) + batch * o.batch_stride + w * o.token_stride : nullptr;
}

// One warp per token.
template <class T>
__global__ void __launch_bounds__(256) jacobi_update_kernel(const JacobiUpdateParams p) {
  const int lane = threadIdx.x % 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * blockDim.x / 32;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
       i < p.batch * p.tokens; i += warps) {
    const int64_t batch = i / p.tokens, w = i % p.tokens;
    T* x = token<T>(p.x, batch, w);
    const T *z = token<T>(p.z, batch, w), *a = token<T>(p.a, batch, w);
    const T *b = token<T>(p.b, batch, w), *previous = token<T>(p.previous, batch, w);
    const T *ua = token<T>(p.uncond_a, batch, w), *ub = token<T>(p.uncond_b, batch, w);
    const float g = p.guidance ? p.guidance[w * p.guidance_stride] : 0.f;
    float most = 0.f;
    for (int64_t c = lane; c < p.channels; c += 32) {
      float log_scale = to_accumulate(a[c]), shift = to_accumulate(b[c]);
      if (ua) log_scale += g * (log_scale - to_accumulate(ua[c]));
      if (ub) shift += g * (shift - to_accumulate(ub[c]));
      const float old = to_accumulate(previous[c]);
      T rounded;
      from_accumulate(to_accumulate(z[c]) * expf(log_scale) + shift, rounded);
      x[c] = rounded;
      const float now = to_accumulate(rounded);
      const float d = isfinite(now) && isfinite(old) ? fabsf(now - old) : INFINITY;
      most = fmaxf(most, d);
    }
    for (int step = 16; step; step /= 2)
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
    if (lane == 0) p.change[batch * p.change_batch_stride + w * p.change_token_stride] = most;
  }
}

}  // namespace

void jacobi_update_cuda(const JacobiUpdateParams& p, const Device& device) {
  with_cuda_type(p.dtype, [&]<class T>() {
    launch(jacobi_update_kernel<T>, grid_for(p.batch * p.tokens * 32, 256), 256, device, p);
  });
}

}  // namespace pixleap
