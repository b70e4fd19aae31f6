#include "cuda/launch.h"
#include "ops/layer_norm/layer_norm.h"

namespace pixleap {
namespace {

constexpr int kBlock = 128;
constexpr unsigned kAll = 0xffffffffu;

__device__ float warp_sum(float v) {
  for (int step = 16; step; step /= 2) v += __shfl_xor_sync(kAll, v, step);
  return v;
}

__device__ float element(const LayerNormOperand& o, int64_t batch, int64_t i, float absent) {
  if (!o.data) return absent;
  i += batch * o.stride;
  switch (o.dtype) {
    case DType::bf16:
      return to_accumulate(static_cast<const __nv_bfloat16*>(o.data)[i]);
    case DType::f16:
      return to_accumulate(static_cast<const __half*>(o.data)[i]);
    default:
      return static_cast<const float*>(o.data)[i];
  }
}

// One warp per row; the second and third reads of the row hit the cache.
template <class T, class U>
__global__ void __launch_bounds__(kBlock) layer_norm_kernel(const LayerNormParams p) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kBlock / 32);
  const int64_t c = p.channels;
  const float inverse = 1.f / static_cast<float>(c);
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * (kBlock / 32) + threadIdx.x / 32;
       row < p.batch * p.length; row += warps) {
    const int64_t b = row / p.length, l = row % p.length;
    const T* x = static_cast<const T*>(p.x) + b * p.x_strides[0] + l * p.x_strides[1];
    U* out = static_cast<U*>(p.out) + b * p.out_strides[0] + l * p.out_strides[1];
    float sum = 0.f, square = 0.f;
    for (int64_t i = lane; i < c; i += 32) sum += to_accumulate(x[i]);
    const float mean = warp_sum(sum) * inverse;
    sum = 0.f;  // of the deviations: corrects the rounding of the mean
    for (int64_t i = lane; i < c; i += 32) {
      const float d = to_accumulate(x[i]) - mean;
      sum += d;
      square += d * d;
    }
    const float correction = warp_sum(sum) * inverse;
    const float variance = warp_sum(square) * inverse - correction * correction;
    const float scale = 1.f / sqrtf((variance > 0.f ? variance : 0.f * variance) + p.eps);
    for (int64_t i = lane; i < c; i += 32) {
      const float v = (to_accumulate(x[i]) - mean - correction) * scale;
      const float affine = v * element(p.weight, b, i, 1.f) + element(p.bias, b, i, 0.f);
      from_accumulate(affine * (1.f + element(p.scale, b, i, 0.f)) + element(p.shift, b, i, 0.f),
                      out[i]);
    }
  }
}

}  // namespace

void layer_norm_cuda(const LayerNormParams& p, const Device& device) {
  with_cuda_type(p.x_dtype, [&]<class T>() {
    with_cuda_type(p.out_dtype, [&]<class U>() {
      launch(layer_norm_kernel<T, U>, grid_for(p.batch * p.length * 32, kBlock), kBlock, device, p);
    });
  });
}

}  // namespace pixleap
