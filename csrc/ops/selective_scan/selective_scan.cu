#include "cuda/launch.h"
#include "ops/selective_scan/selective_scan.h"

namespace pixleap {
namespace {

constexpr int kBlock = 64;  // small: there are only B * E threads

template <class T>
__device__ T* at(const SelectiveScanSequence& s, int64_t batch, int64_t step) {
  return static_cast<T*>(s.data) + batch * s.batch_stride + step * s.step_stride;
}

__device__ float softplus(float x) { return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }

// One thread per batch entry and channel; its states in registers (local memory above 16).
template <class T, int Most>
__global__ void __launch_bounds__(kBlock) selective_scan_kernel(const SelectiveScanParams p) {
  constexpr int kUnroll = Most > 16 ? 1 : Most;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
       i < p.batch * p.channels; i += static_cast<int64_t>(gridDim.x) * kBlock) {
    const int64_t batch = i / p.channels, e = i % p.channels;
    const float* state =
        p.state ? p.state + batch * p.state_strides[0] + e * p.state_strides[1] : nullptr;
    float* final_state =
        p.final_state + batch * p.final_state_strides[0] + e * p.final_state_strides[1];
    const float d = p.d ? p.d[e * p.d_stride] : 0.f;
    const float bias = p.delta_bias ? p.delta_bias[e * p.delta_bias_stride] : 0.f;
    const int states = static_cast<int>(p.states);
    float a[Most], h[Most];
#pragma unroll kUnroll
    for (int s = 0; s < Most; ++s) {
      a[s] = s < states ? p.a[e * p.a_stride + s] : 0.f;
      h[s] = s < states && state ? state[s] : 0.f;
    }
    for (int64_t t = 0; t < p.length; ++t) {
      const float u = to_accumulate(at<T>(p.u, batch, t)[e]);
      float dt = to_accumulate(at<T>(p.delta, batch, t)[e]) + bias;
      if (p.delta_softplus) dt = softplus(dt);
      const T *b = at<T>(p.b, batch, t), *c = at<T>(p.c, batch, t);
      const float input = dt * u;
      float y = d * u;
#pragma unroll kUnroll
      for (int s = 0; s < Most; ++s) {
        const bool inside = s < states;  // those beyond stay zero
        h[s] = expf(dt * a[s]) * h[s] + input * (inside ? to_accumulate(b[s]) : 0.f);
        y += h[s] * (inside ? to_accumulate(c[s]) : 0.f);
      }
      if (p.z.data) {
        const float z = to_accumulate(at<T>(p.z, batch, t)[e]);
        y *= z / (1.f + expf(-z));
      }
      from_accumulate(y, at<T>(p.y, batch, t)[e]);
    }
#pragma unroll kUnroll
    for (int s = 0; s < Most; ++s)
      if (s < states) final_state[s] = h[s];
  }
}

}  // namespace

void selective_scan_cuda(const SelectiveScanParams& p, const Device& device) {
  const unsigned grid = grid_for(p.batch * p.channels, kBlock);
  with_cuda_type(p.dtype, [&]<class T>() {
    if (p.states <= 16)
      launch(selective_scan_kernel<T, 16>, grid, kBlock, device, p);
    else
      launch(selective_scan_kernel<T, static_cast<int>(kSelectiveScanStates)>, grid, kBlock, device,
             p);
  });
}

}  // namespace pixleap
