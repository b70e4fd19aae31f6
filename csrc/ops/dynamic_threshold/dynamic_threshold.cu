#include "cuda/launch.h"
#include "ops/dynamic_threshold/dynamic_threshold.h"

namespace pixleap {
namespace {

constexpr int kThreads = 512;
constexpr int kBins = 2048;

template <class T>
__device__ inline uint32_t magnitude_bits(T x) {
  return __float_as_uint(fabsf(to_accumulate(x)));
}

// One block per sample. The bits of |x| order as the values do: digits of 11, 10 and 10 of their 31
// bits are fixed one after the other by counting; then the next value up is looked for.
template <class T>
__global__ void __launch_bounds__(kThreads)
    dynamic_threshold_kernel(const DynamicThresholdParams p) {
  __shared__ unsigned long long bins[kBins], upto, below;
  __shared__ uint32_t digits, next;
  __shared__ int has_nan;
  for (int64_t sample = blockIdx.x; sample < p.batch; sample += gridDim.x) {
    const T* x = static_cast<const T*>(p.x) + sample * p.x_stride;
    T* out = static_cast<T*>(p.out) + sample * p.out_stride;
    if (threadIdx.x == 0) digits = 0, below = upto = 0, next = 0x7f800000u, has_nan = 0;
    for (int pass = 0; pass < 3; ++pass) {
      const int shift = pass == 0 ? 20 : pass == 1 ? 10 : 0, width = pass == 0 ? 11 : 10;
      for (int b = threadIdx.x; b < kBins; b += kThreads) bins[b] = 0;
      __syncthreads();
      const uint32_t prefix = digits;
      for (int64_t i = threadIdx.x; i < p.length; i += kThreads) {
        const uint32_t bits = magnitude_bits(x[i]);
        if (pass == 0 && bits > 0x7f800000u) has_nan = 1;
        if (pass == 0 || bits >> (shift + width) == prefix)
          atomicAdd(&bins[bits >> shift & ((1u << width) - 1)], 1ull);
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        uint32_t digit = 0;
        unsigned long long sum = below;
        while (digit + 1 < 1u << width && sum + bins[digit] <= (unsigned long long)p.rank)
          sum += bins[digit++];
        below = sum;
        upto = sum + bins[digit];
        digits = prefix << width | digit;
      }
      __syncthreads();
    }
    const uint32_t value = digits;
    const bool same = upto > (unsigned long long)p.rank + 1 || p.rank + 1 == p.length;
    if (!same) {
      uint32_t mine = 0x7f800000u;
      for (int64_t i = threadIdx.x; i < p.length; i += kThreads) {
        const uint32_t bits = magnitude_bits(x[i]);
        if (bits > value && bits < mine) mine = bits;
      }
      atomicMin(&next, mine);
    }
    __syncthreads();
    const float low = __uint_as_float(value), high = same ? low : __uint_as_float(next);
    const float s = has_nan ? __uint_as_float(0x7fc00000u) : dynamic_threshold_scale(p, low, high);
    if (threadIdx.x == 0) p.scale[sample] = s;
    for (int64_t i = threadIdx.x; i < p.length; i += kThreads) {
      const float v = to_accumulate(x[i]);
      const float clamped = v < -s ? -s : v > s ? s : v;
      from_accumulate(has_nan ? s : __fdiv_rn(clamped, s), out[i]);
    }
    __syncthreads();
  }
}

}  // namespace

void dynamic_threshold_cuda(const DynamicThresholdParams& p, const Device& device) {
  with_cuda_type(p.dtype, [&]<class T>() {
    if constexpr (!std::is_same_v<T, double>)
      launch(dynamic_threshold_kernel<T>, grid_for(p.batch, 1), kThreads, device, p);
  });
}

}  // namespace pixleap
