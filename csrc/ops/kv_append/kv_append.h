// Splits a fused projection into queries, and keys and values that go into their caches.
//   out[b, h, l] = qkv[b, l, 0, h]   k_cache[b, h, position + l] = qkv[b, l, 1, h]   (v alike)
// With q_scale: q and k have unit length over dim, and q is multiplied by q_scale[h].
#pragma once

#include "core/dispatch.h"

namespace pixleap {

struct KvAppendParams {
  DType dtype;
  const void* qkv;      // (batch, length, 3, heads, dim)
  void* out;            // (batch, heads, length, dim)
  void* cache[2];       // keys, values: (batch, heads, capacity, dim), at `position`
  const void* q_scale;  // (heads,) or null
  DType q_scale_dtype;
  int64_t qkv_strides[4], out_strides[3], cache_strides[2][3], q_scale_stride;
  int64_t batch, length, heads, dim;
};

// Tokens of a task: 2^15 numbers or more.
static inline int64_t kv_append_grain(const KvAppendParams& p) {
  return (1 << 15) / (3 * p.heads * p.dim) + 1;
}

// What both fronts ask of their arrays beyond the shapes: dtypes, devices, memory, and q_scale,
// which goes into `p`.
void kv_append_arrays(const Check& check, KvAppendParams& p, const Out& out, const Out& k_cache,
                      const Out& v_cache, const View& qkv, const Optional& q_scale);

void kv_append(const Out& out, const Out& k_cache, const Out& v_cache, const View& qkv,
               int64_t position, const Optional& q_scale);

PIXLEAP_DECLARE_KERNELS(kv_append, KvAppendParams)

}  // namespace pixleap
