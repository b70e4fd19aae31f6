// Scaled dot-product attention over strided heads, with masks that skip what they hide.
//   out[b, h, i] = sum_j softmax_j(scale * q[b, h, i] . k[b, g, j] + mask[b, h, i, j]) v[b, g, j]
#pragma once

#include <span>

#include "core/dispatch.h"

namespace pixleap {

constexpr int kAttentionMaxDim = 256;
constexpr int64_t kAttentionGrain = 1 << 18;  // multiply-adds per chunk of tasks

// Queries of a task. Fixed by the head dimension, so that results depend on no batch or threads.
static constexpr int64_t attention_query_block(int64_t dim) {
  return dim <= 64 ? 64 : dim <= 128 ? 32 : 16;
}

struct AttentionParams {
  DType dtype;       // of q, k, v and out
  const void* q;     // (batch, heads, queries, dim)
  const void* k;     // (batch, kv_heads, keys, dim)
  const void* v;     // (batch, kv_heads, keys, dim)
  void* out;         // (batch, heads, queries, dim)
  float* lse;        // (batch, heads, queries) or null
  const void* mask;  // (batch, heads, queries, keys) added to the scores, or null
  DType mask_dtype;
  const int64_t* visible;  // (batch, queries): how many keys a query sees, or null
  // In elements, 0 where an extent of 1 is repeated. The last one of q, k, v and out is 1.
  int64_t q_strides[3], k_strides[3], v_strides[3], out_strides[3], lse_strides[3];
  int64_t mask_strides[4], visible_strides[2];
  int64_t batch, heads, kv_heads, queries, keys, dim;
  bool causal;  // query i sees keys up to keys - queries + i
  float scale;
};

// `out` is the output alone or with the log-sum-exp of the scores after it.
void attention(std::span<const Out> out, const View& q, const View& k, const View& v,
               const Optional& mask, const Optional& visible, bool causal, double scale);

PIXLEAP_DECLARE_KERNELS(attention, AttentionParams)

}  // namespace pixleap
