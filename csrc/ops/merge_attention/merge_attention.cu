#include "cuda/launch.h"
#include "ops/merge_attention/merge_attention.h"

namespace pixleap {
namespace {

constexpr int kBlock = 128;
constexpr unsigned kAll = 0xffffffffu;
static_assert(kMergeMaxParts <= 32, "a lane per part");

// One warp per row: lane i weighs part i, then all lanes sum the parts.
template <class T, class U>
__global__ void __launch_bounds__(kBlock) merge_attention_kernel(const MergeAttentionParams p) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kBlock / 32);
  const float none = -INFINITY;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * (kBlock / 32) + threadIdx.x / 32;
       row < p.batch * p.heads * p.queries; row += warps) {
    const int64_t l = row % p.queries, h = row / p.queries % p.heads, b = row / p.queries / p.heads;
    float lse = none;
    if (lane < p.parts) {
      const MergePart& part = p.in[lane];
      lse = part.lse[b * part.lse_strides[0] + h * part.lse_strides[1] + l * part.lse_strides[2]];
    }
    float top = lse;
    for (int step = 16; step; step /= 2) top = fmaxf(top, __shfl_xor_sync(kAll, top, step));
    const float base = top == none ? 0.f : top;
    const float weight = expf(lse - base);
    float total = weight;
    for (int step = 16; step; step /= 2) total += __shfl_xor_sync(kAll, total, step);
    const float share = weight / (total == 0.f ? 1.f : total);

    U* out =
        static_cast<U*>(p.out) + b * p.out_strides[0] + h * p.out_strides[1] + l * p.out_strides[2];
    for (int64_t begin = 0; begin < p.dim; begin += 32) {
      const int64_t e = begin + lane;
      float sum = 0.f;
      for (int i = 0; i < p.parts; ++i) {
        // Of all lanes, also those beyond the row. A part that saw no key is not read.
        const float w = __shfl_sync(kAll, share, i), seen = __shfl_sync(kAll, lse, i);
        if (seen == none || e >= p.dim) continue;
        const int64_t* s = p.in[i].out_strides;
        sum += w * to_accumulate(
                       static_cast<const T*>(p.in[i].out)[b * s[0] + h * s[1] + l * s[2] + e]);
      }
      if (e < p.dim) from_accumulate(sum, out[e]);
    }
    if (p.lse && lane == 0)
      p.lse[b * p.lse_strides[0] + h * p.lse_strides[1] + l * p.lse_strides[2]] =
          base + logf(total);
  }
}

}  // namespace

void merge_attention_cuda(const MergeAttentionParams& p, const Device& device) {
  with_cuda_type(p.dtype, [&]<class T>() {
    with_cuda_type(p.out_dtype, [&]<class U>() {
      launch(merge_attention_kernel<T, U>, grid_for(p.batch * p.heads * p.queries * 32, kBlock),
             kBlock, device, p);
    });
  });
}

}  // namespace pixleap
