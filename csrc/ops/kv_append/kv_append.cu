#include "cuda/kv_append.h"

namespace pixleap {
namespace {

template <class T>
__global__ void __launch_bounds__(kAppendBlock) kv_append_kernel(const KvAppendParams p) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kAppendBlock / 32);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * (kAppendBlock / 32) + threadIdx.x / 32;
       i < p.batch * p.length * p.heads; i += warps) {
    const int64_t head = i % p.heads, token = i / p.heads;
    const int64_t b = token / p.length, l = token % p.length;
    append_head(p, head, static_cast<const T*>(p.qkv) + b * p.qkv_strides[0] + l * p.qkv_strides[1],
                static_cast<T*>(p.out) + b * p.out_strides[0] + l * p.out_strides[2], b, l, b,
                p.position + l, lane);
  }
}

}  // namespace

void kv_append_cuda(const KvAppendParams& p, const Device& device) {
  const unsigned grid = grid_for(p.batch * p.length * p.heads * 32, kAppendBlock);
  with_append_type(p.dtype,
                   [&]<class T>() { launch(kv_append_kernel<T>, grid, kAppendBlock, device, p); });
}

}  // namespace pixleap
