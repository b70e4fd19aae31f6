// One head of one token by one warp: `kv_append` and `kv_append_varlen` are made of it.
#pragma once

#include "cuda/launch.h"
#include "ops/kv_append/kv_append.h"

namespace pixleap {

constexpr int kAppendBlock = 128;

template <class T>
__device__ float append_factor(const T* in, int64_t dim, int lane) {
  float squares = 0.f;
  for (int64_t d = lane; d < dim; d += 32) {
    const float x = to_accumulate(in[d]);
    squares += x * x;
  }
  for (int step = 16; step; step /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, step);
  return 1.f / fmaxf(sqrtf(squares), 1e-12f);
}

__device__ inline float append_scale(const KvAppendParams& p, int64_t head) {
  const int64_t i = head * p.q_scale_stride;
  switch (p.q_scale_dtype) {
    case DType::bf16:
      return to_accumulate(static_cast<const __nv_bfloat16*>(p.q_scale)[i]);
    case DType::f16:
      return to_accumulate(static_cast<const __half*>(p.q_scale)[i]);
    default:
      return static_cast<const float*>(p.q_scale)[i];
  }
}

// in, out, k and v: the token's, of head 0.
template <class T>
__device__ void append_head(const KvAppendParams& p, int64_t head, const T* in, T* out, T* k, T* v,
                            int lane) {
  const T* q = in + head * p.qkv_strides[3];
  out += head * p.out_strides[1];
  k += head * p.cache_strides[0][1];
  v += head * p.cache_strides[1][1];
  const T *key = q + p.qkv_strides[2], *value = key + p.qkv_strides[2];
  if (p.q_scale) {
    const float q_factor = append_factor(q, p.dim, lane) * append_scale(p, head);
    const float k_factor = append_factor(key, p.dim, lane);
    for (int64_t d = lane; d < p.dim; d += 32) {
      from_accumulate(to_accumulate(q[d]) * q_factor, out[d]);
      from_accumulate(to_accumulate(key[d]) * k_factor, k[d]);
      v[d] = value[d];
    }
  } else {
    for (int64_t d = lane; d < p.dim; d += 32) out[d] = q[d], k[d] = key[d], v[d] = value[d];
  }
}

}  // namespace pixleap
